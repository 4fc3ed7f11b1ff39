/* Counts the instructions that a program executes under qemu-aarch64: a plugin for the emulator
 * (TCG plugin interface, version 1, qemu 4.2 to 8). Owns the count alone; count.py runs it and
 * takes differences. The count is exact for one thread.
 *
 * The interface is declared here, because distributions do not package qemu-plugin.h. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct qemu_plugin_tb; /* a block of translated code */
typedef uint64_t qemu_plugin_id_t;
typedef void (*block_translated)(qemu_plugin_id_t, struct qemu_plugin_tb*);
typedef void (*program_ended)(qemu_plugin_id_t, void*);

enum { INLINE_ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, block_translated);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, program_ended, void*);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int, void*, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

static uint64_t instructions;

/* Each execution of a block adds its length. The addition is part of the translated code and not
 * atomic. */
static void count_block(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &instructions,
                                             qemu_plugin_tb_n_insns(block));
}

static void print_count(qemu_plugin_id_t id, void* user) {
    (void)id;
    (void)user;
    fprintf(stderr, "instructions: %" PRIu64 "\n", instructions);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc, char** argv) {
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_atexit_cb(id, print_count, NULL);
    return 0;
}
