// Fibers by makecontext() once and longjmp() ever after: swapcontext() asks the system each time.
#include "tests/native/emulated_gpu/cta.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace awqe::emulated {

Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // untouched pages cost nothing
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 228 * 1024;

enum class State { kReady, kAtCtaBarrier, kAtWarpBarrier, kDone };

struct Fiber {
    jmp_buf resume;
    ucontext_t first;
    bool started = false;
    State state = State::kDone;
    unsigned number = 0;
    unsigned exchanges = 0;
};

struct Warp {
    Shown shown[2][kWarp];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
jmp_buf scheduler;
Fiber* current;
unsigned threads_of_cta;
size_t shared_bytes_of_cta;
const std::function<void()>* body_of_kernel;
alignas(128) unsigned char shared_memory[kMostShared];

[[noreturn]] void broken(const char* what) {
    std::fprintf(stderr, "emulated GPU: %s, in CTA (%u, %u, %u)\n", what, block_index.x,
                 block_index.y, block_index.z);
    std::abort();
}

[[noreturn]] void back_to_scheduler() { _longjmp(scheduler, 1); }

void wait(State state) {
    current->state = state;
    if (_setjmp(current->resume) == 0) back_to_scheduler();
}

[[noreturn]] void fiber_main() {
    for (;;) {
        (*body_of_kernel)();
        current->state = State::kDone;
        if (_setjmp(current->resume) == 0) back_to_scheduler();
    }
}

void make_fibers() {
    if (!fibers.empty()) return;
    fibers.resize(kMostThreads);
    warps.resize(kMostThreads / kWarp);
    for (unsigned i = 0; i < kMostThreads; ++i) {
        fibers[i].number = i;
        void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) broken("no memory for stacks");
        getcontext(&fibers[i].first);
        fibers[i].first.uc_stack.ss_sp = stack;
        fibers[i].first.uc_stack.ss_size = kStackBytes;
        fibers[i].first.uc_link = nullptr;
        makecontext(&fibers[i].first, fiber_main, 0);
    }
}

void resume(Fiber& fiber) {
    current = &fiber;
    thread_index = {fiber.number, 0, 0};
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.first);
}

// Releases the fibers [begin, end) if all that have not ended wait in `state`.
bool release(unsigned begin, unsigned end, State state) {
    bool any = false;
    for (unsigned i = begin; i < end; ++i) {
        if (fibers[i].state == State::kDone) continue;
        if (fibers[i].state != state) return false;
        any = true;
    }
    for (unsigned i = begin; any && i < end; ++i) {
        if (fibers[i].state == state) fibers[i].state = State::kReady;
    }
    return any;
}

void run_cta() {
    for (unsigned i = 0; i < threads_of_cta; ++i) {
        fibers[i].state = State::kReady;
        fibers[i].exchanges = 0;
    }
    std::memset(shared_memory, 0xff, shared_bytes_of_cta);  // NaN to whoever reads it
    for (bool left = true; left;) {
        bool moved = false;
        for (unsigned i = 0; i < threads_of_cta; ++i) {
            if (fibers[i].state != State::kReady) continue;
            resume(fibers[i]);
            moved = true;
        }
        for (unsigned first = 0; first < threads_of_cta; first += kWarp) {
            moved = release(first, first + kWarp, State::kAtWarpBarrier) || moved;
        }
        moved = release(0, threads_of_cta, State::kAtCtaBarrier) || moved;
        left = false;
        for (unsigned i = 0; i < threads_of_cta; ++i)
            left = left || fibers[i].state != State::kDone;
        if (left && !moved) broken("threads wait for each other at different barriers");
    }
}

}  // namespace

void run_grid(Index grid, unsigned threads, size_t shared_bytes,
              const std::function<void()>& body) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    make_fibers();
    if (threads % kWarp != 0 || threads > kMostThreads) broken("odd number of threads");
    if (shared_bytes > kMostShared) broken("too much shared memory");
    threads_of_cta = threads;
    shared_bytes_of_cta = shared_bytes;
    body_of_kernel = &body;
    grid_size = grid;
    block_size = {threads, 1, 1};
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = {x, y, z};
                run_cta();
            }
}

void* dynamic_shared() { return shared_memory; }
void cta_barrier() { wait(State::kAtCtaBarrier); }
void warp_barrier() { wait(State::kAtWarpBarrier); }
void let_others_run() { wait(State::kReady); }
unsigned lane() { return current->number % kWarp; }

const Shown* exchange(const Shown& own) {
    Warp& warp = warps[current->number / kWarp];
    Shown* const shown = warp.shown[current->exchanges++ % 2];
    const unsigned first = current->number / kWarp * kWarp;
    for (unsigned i = first; i < first + kWarp; ++i) {
        if (fibers[i].state == State::kDone) broken("a lane has ended that a shuffle reads");
    }
    shown[lane()] = own;
    warp_barrier();
    return shown;
}

}  // namespace awqe::emulated
