// Sums a buffer again and again, in every shape of read_shapes.h; see bandwidth.h.
#include "native/runtime/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>

#include "native/failure/failure.h"
#include "native/runtime/arena.h"
#include "native/runtime/cpus.h"
#include "native/runtime/read_shapes.h"
#include "native/runtime/thread_pool.h"

namespace awqe {
namespace {

constexpr int kPasses = 3;  // of each shape
constexpr uint32_t kMostThreads = 1024;

}  // namespace

double measure_read_bandwidth(unsigned threads, uint64_t bytes) {
    constexpr uint64_t kLineBytes = kLineWords * sizeof(uint64_t);
    if (threads > kMostThreads) {
        fail(AWQE_INVALID_ARGUMENT, "threads is %u, allowed are 0 to %u", threads, kMostThreads);
    }
    if (bytes < kLineBytes || bytes > (uint64_t{1} << 40)) {
        fail(AWQE_INVALID_ARGUMENT, "bytes is %" PRIu64 ", allowed are %" PRIu64 " to 2^40", bytes,
             kLineBytes);
    }
    const PageRegion region(bytes, PageSize::kHuge);
    uint64_t* const words = reinterpret_cast<uint64_t*>(region.data());
    const size_t lines = bytes / kLineBytes;
    const unsigned members = threads == 0 ? available_cpus() : threads;
    ThreadPool pool(members);
    // Writing makes the pages real: all untouched ones are the same page of zeros.
    pool.run(members, [&](Team& team) {
        team.share(lines, 1, [&](size_t begin, size_t end) {
            std::fill(words + begin * kLineWords, words + end * kLineWords, uint64_t{1});
        });
    });
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
        for (const ReadShape sum : kReadShapes) {
            std::atomic<uint64_t> total{0};
            const auto start = std::chrono::steady_clock::now();
            pool.run(members, [&](Team& team) {
                team.share(lines, 1, [&](size_t begin, size_t end) {
                    total.fetch_add(sum(words + begin * kLineWords, end - begin),
                                    std::memory_order_relaxed);
                });
            });
            const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
            // Also what keeps a compiler from leaving the sums out.
            if (total.load() != lines * kLineWords)
                fail(AWQE_INTERNAL, "memory does not hold what was written");
            best = std::max(best, static_cast<double>(lines * kLineBytes) / seconds.count());
        }
    }
    return best;
}

}  // namespace awqe
