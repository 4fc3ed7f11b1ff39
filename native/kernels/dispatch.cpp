// See dispatch.h.
#include "native/kernels/dispatch.h"

#include <string.h>

#include "native/kernels/tables/tables.h"

namespace awqe {
namespace {

const KernelTable* const kTables[] = {
#if defined(__x86_64__)
    &kTableAvx512,
    &kTableAvxVnni,
    &kTableAvx2,
#elif defined(__aarch64__)
    &kTableNeonI8mm,
    &kTableNeonDotprod,
    &kTableNeon,
#endif
    &kTableReference,
};
constexpr size_t kTableCount = sizeof(kTables) / sizeof(kTables[0]);

bool can_run(const KernelTable& table, uint32_t features) {
    return (table.required & ~features) == 0;
}

std::string names_of_runnable(uint32_t features) {
    std::string names;
    for (const KernelTable* table : kTables) {
        if (!can_run(*table, features)) continue;
        if (!names.empty()) names += ", ";
        names += table->name;
    }
    return names;
}

}  // namespace

const KernelTable* const* kernel_tables(size_t* count) {
    *count = kTableCount;
    return kTables;
}

const KernelTable* choose_kernels(const char* name, uint32_t features, std::string* problem) {
    const bool any = name == nullptr || name[0] == '\0';
    for (const KernelTable* table : kTables) {
        if (!any && strcmp(name, table->name) != 0) continue;
        if (can_run(*table, features)) return table;
        if (any) continue;
        *problem = std::string("this CPU cannot run the kernels '") + name + "'; it can run " +
                   names_of_runnable(features);
        return nullptr;
    }
    *problem = std::string("there are no kernels called '") + name + "'; this CPU can run " +
               names_of_runnable(features);
    return nullptr;
}

}  // namespace awqe
