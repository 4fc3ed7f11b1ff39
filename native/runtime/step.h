// What the parts of a layer share: the block on its way, and the operations between its arrays that
// attention and feed-forward both consist of. forward.cpp has them; it is the summary of them all.
//
// Letters: m rows of the block, n outputs and k inputs of a matrix, t one row, h one key-value
// head. Every member of the team runs every function here. share() divides work and then waits for
// all, so whatever stands before a share() is visible to everybody after it.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "native/runtime/forward.h"

namespace awqe {

// What all steps of a block have in common.
struct Step {
    const Model& model;
    const Architecture& a;
    const KernelTable& kernels;
    const Activations& buffers;
    Team& team;

    // The part of the block that is still computed: its last rows.
    const Row* rows;  // [m]
    size_t first;     // where they lie in the arrays
    size_t m;

    KvCache& cache(size_t t) const { return static_cast<CachedSequence*>(rows[t].sequence)->cache; }

    float* residual(size_t t) const { return buffers.residual + (first + t) * a.hidden_size; }
    float* query(size_t t) const { return buffers.query + (first + t) * a.query_size(); }
    float* key(size_t t) const { return buffers.key + (first + t) * a.key_size(); }
    float* value(size_t t) const { return buffers.value + (first + t) * a.key_size(); }
    float* attended(size_t t) const { return buffers.attended + (first + t) * a.query_size(); }
    float* waiting(size_t t) const { return buffers.waiting + (first + t) * a.hidden_size; }
    float* gate(size_t t) const { return buffers.gate + (first + t) * a.feed_forward_size; }
    float* up(size_t t) const { return buffers.up + (first + t) * a.feed_forward_size; }
    float* projected(size_t t) const { return buffers.projected + (first + t) * a.hidden_size; }
    float* cosines(size_t t, size_t table) const { return angle(buffers.cosines, t, table); }
    float* sines(size_t t, size_t table) const { return angle(buffers.sines, t, table); }

  private:
    float* angle(float* all, size_t t, size_t table) const {
        return all + (table * buffers.rows + first + t) * (a.head_size / 2);
    }
};

inline size_t blocks_of(const PackedMatrix& w) { return (w.rows + kBlockRows - 1) / kBlockRows; }

// Blocks of rows that one thread takes at a time: for several tokens the 32 rows of a register
// tile.
inline size_t grain_of(const Step& step) { return step.m == 1 ? 1 : 8; }

// ---- inputs of a matrix -------------------------------------------------------------------------

// The buffer's memory as rows of k inputs in groups of g, beginning at `row`.
inline QuantizedRows rows_of(const QuantizedRows& buffer, size_t row, size_t k, size_t g) {
    return {buffer.codes + row * buffer.code_stride, buffer.scales + row * buffer.group_stride,
            buffer.sums + row * buffer.group_stride, round_up(k, 64), (k + g - 1) / g};
}

// Quantises the rows that make_row(t) returns, float [k] each: int8 [m, k].
// A single row is quantised by every member for itself: that takes less time than one member doing
// it while the others wait.
template <class MakeRow>
QuantizedRows quantize(const Step& step, size_t k, size_t g, const MakeRow& make_row) {
    if (step.m == 1) {
        const QuantizedRows own = rows_of(step.buffers.own_input, step.team.index(), k, g);
        step.kernels.quantize_act(make_row(0), k, g, &own, 0);
        return own;
    }
    const QuantizedRows shared = rows_of(step.buffers.block_input, 0, k, g);
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t)
            step.kernels.quantize_act(make_row(t), k, g, &shared, t);
    });
    return shared;
}

// y = norm(x), both float [n]; y may be x.
void normalise(const Step& step, const Norm& norm, const float* x, size_t n, float* y);

// The norm of the residual stream, or where there is none the stream itself, quantised:
// int8 [m, hidden].
QuantizedRows read_stream(const Step& step, const Norm& norm, size_t g);

// ---- products -----------------------------------------------------------------------------------

// y[t][n] = W x[t] + bias, for the blocks of rows [first_block, end_block). y: float [m, y_stride]
void multiply(const Step& step, const Linear& linear, const QuantizedRows& x, float* y,
              size_t y_stride, size_t first_block, size_t end_block);

// Matrices with one input, divided as if their rows followed each other.
struct Product {
    const Linear& linear;
    float* y;  // [m, n]
};
void multiply_all(const Step& step, std::initializer_list<Product> products,
                  const QuantizedRows& x);

// What a branch ends with: the stream takes up W x[t] + bias, by Architecture::norm_places.
// before: what is added before that, [m, hidden], or NULL.
void add_to_stream(const Step& step, const Linear& linear, const Norm& post_norm,
                   const QuantizedRows& x, const float* before);

// ---- the branches of a layer --------------------------------------------------------------------

// Stores the keys and values of all rows and attends with the last `wanted`, which are those that
// are left of the block afterwards.
void attention(Step& step, const LayerWeights& w, size_t layer, size_t wanted);

void feed_forward(const Step& step, const LayerWeights& w);

// The same for a layer with experts.
void mixture_of_experts(const Step& step, const LayerWeights& w);

// ---- memory -------------------------------------------------------------------------------------

// An array of m quantised rows of `width` inputs in at most `groups` groups.
QuantizedRows take_rows(Arena& arena, size_t m, size_t width, size_t groups);

}  // namespace awqe
