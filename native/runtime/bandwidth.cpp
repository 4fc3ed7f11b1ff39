// Sums a buffer again and again; see bandwidth.h.
#include "native/runtime/bandwidth.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cinttypes>
#include <vector>

#include "native/failure/failure.h"
#include "native/runtime/arena.h"
#include "native/runtime/cpus.h"
#include "native/runtime/thread_pool.h"

namespace awqe {
namespace {

constexpr uint64_t kStepWords = 16;  // a cache line from each of two streams
constexpr int kPasses = 9;           // odd, so that the median is one of them
constexpr uint32_t kMostThreads = 1024;

// Adds steps [begin, end): the two halves of the range are read together. Two streams keep more of
// a core's prefetchers busy than one; with 128-bit loads they read as fast as one stream of 512-bit
// loads, or faster.
uint64_t sum(const uint64_t* words, size_t begin, size_t end) {
    constexpr size_t kLine = kStepWords / 2;
    const size_t lines = end - begin;
    const uint64_t* const first = words + begin * kStepWords;
    const uint64_t* const second = first + lines * kLine;
    std::array<uint64_t, kLine> sums = {};
    for (size_t i = 0; i < lines * kLine; i += kLine) {
        for (size_t lane = 0; lane < kLine; ++lane) sums[lane] += first[i + lane];
        for (size_t lane = 0; lane < kLine; ++lane) sums[lane] += second[i + lane];
    }
    uint64_t total = 0;
    for (uint64_t s : sums) total += s;
    return total;
}

}  // namespace

double measure_read_bandwidth(unsigned threads, uint64_t bytes) {
    constexpr uint64_t kStepBytes = kStepWords * sizeof(uint64_t);
    if (threads > kMostThreads) {
        fail(AWQE_INVALID_ARGUMENT, "threads is %u, allowed are 0 to %u", threads, kMostThreads);
    }
    if (bytes < kStepBytes || bytes > (uint64_t{1} << 40)) {
        fail(AWQE_INVALID_ARGUMENT, "bytes is %" PRIu64 ", allowed are %" PRIu64 " to 2^40", bytes,
             kStepBytes);
    }
    const PageRegion region(bytes, PageSize::kHuge);
    uint64_t* const words = reinterpret_cast<uint64_t*>(region.data());
    const size_t steps = bytes / kStepBytes;
    const unsigned members = threads == 0 ? available_cpus() : threads;
    ThreadPool pool(members);
    // Writing makes the pages real: all untouched ones are the same page of zeros.
    pool.run(members, [&](Team& team) {
        team.share(steps, 1, [&](size_t begin, size_t end) {
            std::fill(words + begin * kStepWords, words + end * kStepWords, uint64_t{1});
        });
    });
    std::vector<double> rates;
    for (int pass = 0; pass < kPasses; ++pass) {
        std::atomic<uint64_t> total{0};
        const auto start = std::chrono::steady_clock::now();
        pool.run(members, [&](Team& team) {
            team.share(steps, 1, [&](size_t begin, size_t end) {
                total.fetch_add(sum(words, begin, end), std::memory_order_relaxed);
            });
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        // Also what keeps a compiler from leaving the sums out.
        if (total.load() != steps * kStepWords)
            fail(AWQE_INTERNAL, "memory does not hold what was written");
        rates.push_back(static_cast<double>(steps * kStepBytes) / seconds.count());
    }
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
}

}  // namespace awqe
