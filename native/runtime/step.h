// What the parts of a layer share: the block on its way, and the operations between its arrays that
// attention and feed-forward both consist of, beside products (products.h). forward.cpp has them;
// it is the summary of them all.
//
// Letters: m rows of the block, n outputs and k inputs of a matrix, t one row, h one key-value
// head. Every member of the team runs every function here. share() divides work and then waits for
// all, so whatever stands before a share() is visible to everybody after it.
#pragma once

#include "native/runtime/forward.h"
#include "native/runtime/products.h"

namespace awqe {

// What all steps of a block have in common.
struct Step : Working {  // m: the part of the block that is still computed, its last rows
    const Model& model;
    const Architecture& a;
    const Activations& buffers;
    const Row* rows;  // [m]
    size_t first;     // where they lie in the arrays

    void keep_last(size_t count) {
        const size_t dropped = m - count;
        rows += dropped;
        first += dropped;
        m = count;
    }

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

// ---- the stream --------------------------------------------------------------------------------

// y = norm(x), both float [n]; y may be x.
void normalise(const Step& step, const Norm& norm, const float* x, size_t n, float* y);

// The norm of the residual stream, or where there is none the stream itself, quantised:
// int8 [m, hidden].
QuantizedRows read_stream(const Step& step, const Norm& norm, size_t g);

// What a branch ends with: the stream takes up W x[t] + bias, by Architecture::norm_places.
// before: what is added before that, [m, hidden], or NULL.
void add_to_stream(const Step& step, const Linear& linear, const Norm& post_norm,
                   const QuantizedRows& x, const float* before);

// ---- the branches of a layer --------------------------------------------------------------------

// Stores the keys and values of all rows and attends with the last `wanted`, which are those that
// are left of the block afterwards.
void attention(Step& step, const LayerWeights& w, size_t layer, size_t wanted);

void feed_forward(const Step& step, const LayerWeights& w);

// A block of its own form before a layer; `number` counts the blocks from 0.
void gated_block(const Step& step, const CrossArchitecture& cross, const LayerWeights& w,
                 size_t number);

// In the place of a feed-forward.
void mixture_of_experts(const Step& step, const LayerWeights& w);

}  // namespace awqe
