// The transformer over a block of tokens. Owns the order of the operations and the arrays between
// them; the operations are the kernel table's, and which thread computes what is the team's
// business and changes no bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/kv_cache.h"
#include "native/runtime/model.h"
#include "native/runtime/thread_pool.h"

namespace awqe {

// Tokens that go through the layers together. Long enough to use each weight that was unpacked many
// times, short enough for the activations of a wide feed-forward (128 x 14336 floats) to stay in a
// cache of some megabytes.
constexpr size_t kBlockTokens = 128;

// Arrays between the operations, for up to `tokens` tokens (m) and `threads` threads.
struct Activations {
    Activations(const Model& model, size_t tokens, unsigned threads, Arena& arena);

    float* residual;   // [m, hidden]: the stream that every layer adds to
    float* query;      // [m, heads * head_size]
    float* key;        // [m, kv_heads * head_size]
    float* value;      // [m, kv_heads * head_size]
    float* attended;   // [m, heads * head_size]
    float* gate;       // [m, feed_forward]: then the gated product
    float* up;         // [m, feed_forward]
    float* projected;  // [m, hidden]: what is about to be added to the residual stream
    float* cosines;    // [m, head_size / 2]
    float* sines;      // [m, head_size / 2]
    float* normed;     // [threads, normed_stride]: one token's, private to a thread
    size_t normed_stride;
    QuantizedRows block_input;  // m rows of the widest input: what a matrix is multiplied with
    QuantizedRows own_input;    // the same for one token, a row per thread
    size_t input_width;         // k of the widest input
};

// Which positions of a block need logits.
struct Block {
    const uint32_t* tokens;  // [count]
    size_t count;            // 1 … kBlockTokens
    size_t position;         // of the first token
    size_t wanted;           // logits are computed for the last `wanted` tokens
    float* logits;           // [wanted, vocabulary]
};

// Runs on every member of `team`. Stores keys and values of the block's positions in `cache`.
void forward(const Model& model, const KernelTable& kernels, const Block& block, KvCache& cache,
             const Activations& activations, Team& team);

}  // namespace awqe
