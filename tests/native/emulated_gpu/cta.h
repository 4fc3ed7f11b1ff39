// The threads of one CTA on one thread of a CPU: fibers that run until they meet a barrier. Owns
// the order in which they run, indices, shared memory and what a warp's lanes exchange; knows no
// kernel. A CTA that can go no further, or a shuffle whose lanes are not all there, ends the
// process with a sentence: both are faults of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace awqe::emulated {

constexpr unsigned kWarp = 32;

struct Index {
    unsigned x, y, z;
};

// Of the fiber that runs.
extern Index thread_index, block_index, block_size, grid_size;

// Runs `body` for every thread of every CTA. One launch at a time.
void run_grid(Index grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

void* dynamic_shared();
void cta_barrier();
void warp_barrier();
void let_others_run();
unsigned lane();

// What one lane shows the others.
struct Shown {
    uint32_t word[8];
};

// Shows `own` to the warp and returns what its lanes show: [32], until the next call but one.
const Shown* exchange(const Shown& own);

}  // namespace awqe::emulated
