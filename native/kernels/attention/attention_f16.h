// The contract of attention over an fp16 cache, in chunks of 64 positions counted from position 0,
// for the query heads that share one key-value head.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace awqe {

constexpr size_t kAttentionChunk =
    64;  // positions per chunk; keys and values of one then fit a 32 KB L1 cache at head size 128

// Keys and values of one head. Position t lies in row t % ring, so that a sliding window needs no
// more rows than it sees. `ring` is a multiple of the chunk, which keeps a chunk in one piece, or
// larger than every position.
struct CacheF16 {
    const uint16_t* keys;    // half [row, stride]; the first head_size of each row are this head's
    const uint16_t* values;  // half [row, stride]
    size_t stride;
    size_t ring;
};

// What becomes of a score query . key / sqrt(head_size) before the softmax, in this order.
struct ScoreChange {
    float cap;            // score = cap * tanh(score / cap); 0: no cap
    const float* slopes;  // float [count], or NULL: ALiBi, score -= slope of the query * distance,
                          // the query being at position end - 1
};

// out: float [count, head_size] = softmax(query . keys / sqrt(head_size)) . values over positions
// [begin, end), per query. queries: float [count, head_size]. Positions are absolute: a sliding
// window moves `begin`, never the chunks. Every query is computed as if alone. change: NULL leaves
// the scores as they are.
using AttentionF16Function = void (*)(const float* queries, size_t count, const CacheF16* cache,
                                      size_t head_size, size_t begin, size_t end,
                                      const ScoreChange* change, float* out);

// Rounds x: float [n] to half, to nearest even, into out.
using StoreHalfFunction = void (*)(const float* x, size_t n, uint16_t* out);

}  // namespace awqe
