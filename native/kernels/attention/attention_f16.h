// The contract of attention over an fp16 cache, in chunks of 64 positions counted from position 0,
// for the query heads that share one key-value head.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace awqe {

constexpr size_t kAttentionChunk =
    64;  // positions per chunk; keys and values of one then fit a 32 KB L1 cache at head size 128

// out: float [count, head_size] = softmax(query . keys / sqrt(head_size)) . values over positions
// [begin, end), per query. queries: float [count, head_size]. keys, values: half [position,
// stride]; the first head_size halves of each position are this head's. Positions are absolute: a
// sliding window moves `begin`, never the chunks. Every query is computed as if alone.
using AttentionFunction = void (*)(const float* queries, size_t count, const uint16_t* keys,
                                   const uint16_t* values, size_t stride, size_t head_size,
                                   size_t begin, size_t end, float* out);

// Rounds x: float [n] to half, to nearest even, into out.
using StoreHalfFunction = void (*)(const float* x, size_t n, uint16_t* out);

}  // namespace awqe
