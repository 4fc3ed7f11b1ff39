// Orders in which memory is read once from end to end. Which of them is the fastest differs from
// CPU to CPU: a Zen 4 gives most to loads alone, a Sapphire Rapids two fifths more where lines are
// asked for ahead of them. Owns the orders; bandwidth.cpp measures them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace awqe {

constexpr size_t kLineWords = 8;  // a cache line

// The sum of words[0 ... lines * kLineWords).
using ReadShape = uint64_t (*)(const uint64_t* words, size_t lines);

// kStreams equal parts side by side, a line of each in turn, and then what they leave. kAhead: how
// many bytes ahead each stream's lines are asked for, or 0.
template <size_t kStreams, size_t kAhead>
uint64_t sum_of_words(const uint64_t* words, size_t lines) {
    std::array<uint64_t, kLineWords> sums = {};
    const size_t part = lines / kStreams * kLineWords;
    for (size_t i = 0; i < part; i += kLineWords) {
        for (size_t stream = 0; stream < kStreams; ++stream) {
            const uint64_t* const line = words + stream * part + i;
            if constexpr (kAhead != 0) __builtin_prefetch(line + kAhead / sizeof(*line), 0, 2);
            for (size_t lane = 0; lane < kLineWords; ++lane) sums[lane] += line[lane];
        }
    }
    for (size_t i = kStreams * part; i < lines * kLineWords; ++i) sums[0] += words[i];
    uint64_t total = 0;
    for (const uint64_t s : sums) total += s;
    return total;
}

constexpr std::array<ReadShape, 6> kReadShapes = {sum_of_words<1, 0>,    sum_of_words<2, 0>,
                                                  sum_of_words<4, 0>,    sum_of_words<1, 8192>,
                                                  sum_of_words<2, 8192>, sum_of_words<4, 4096>};

}  // namespace awqe
