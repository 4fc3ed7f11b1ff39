// The transformer over a block of rows, on CPUs. Owns the order of the operations and the arrays
// between them; the operations are the kernel table's, and which thread computes what is the team's
// business and changes no bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/backend.h"
#include "native/runtime/experts.h"
#include "native/runtime/kv_cache.h"
#include "native/runtime/model.h"
#include "native/runtime/thread_pool.h"

namespace awqe {

// Arrays between the operations, for up to `rows` rows (m) and `threads` threads.
struct Activations {
    Activations(const Model& model, size_t rows, unsigned threads, Arena& arena);

    float* residual;   // [m, hidden]: the stream that every layer adds to
    float* query;      // [m, heads * head_size]; of the wider, a layer or a gated block
    float* key;        // [m, kv_heads * head_size]
    float* value;      // [m, kv_heads * head_size]
    float* attended;   // [m, heads * head_size]
    float* waiting;    // [m, hidden]: what attention gives, until the feed-forward is there too;
                       // of parallel layers only
    float* gate;       // [m, feed_forward]: then what the second matrix reads
    float* up;         // [m, feed_forward]
    float* projected;  // [m, hidden]: what is about to be added to the residual stream
    size_t rope_tables;
    float* cosines;  // [rope_tables, m, head_size / 2]
    float* sines;    // [rope_tables, m, head_size / 2]
    float* normed;   // [threads, normed_stride]: one row's, private to a thread
    size_t normed_stride;
    float* logits_tile;         // [threads, m, kTileRows]: on their way to each row's array
    QuantizedRows block_input;  // m rows of the widest input: what a matrix is multiplied with
    QuantizedRows own_input;    // the same for one row, one per thread
    size_t rows;
    ExpertActivations experts;

    static constexpr size_t kTileRows = 64;  // of the head: two register tiles
};

// A sequence whose keys and values lie here.
class CachedSequence : public Sequence {
  public:
    CachedSequence(const Architecture& a, const KvPlan& plan) : cache(a, plan) {}
    size_t earliest(size_t stored) const override { return cache.earliest(stored); }
    bool saved_all(size_t end) const override { return cache.saved_all(end); }
    size_t saved_bytes(size_t begin, size_t end) const override {
        return cache.saved_bytes(begin, end);
    }
    void save(size_t begin, size_t end, uint8_t* bytes) const override {
        cache.save(begin, end, bytes);
    }
    void restore(size_t begin, size_t end, const uint8_t* bytes) override {
        cache.restore(begin, end, bytes);
    }

    KvCache cache;
};

// Runs on every member of `team`. The block's sequences are of the kind above; stores keys and
// values of all rows. `layers`: where somebody else computes the rest, those in front of it; each
// row's `hidden` is then filled with its stream behind them, float [hidden].
void forward(const Model& model, const KernelTable& kernels, const Block& block,
             const Activations& activations, Team& team, size_t layers);

}  // namespace awqe
