// Attention in plain loops, for either cache (native/ARITHMETIC.md, sections 7 and 8). An fp16
// cache has the scale 1 everywhere: a product with it changes no bit.
#pragma once

#include <math.h>

#include "native/kernels/attention/attention_s8.h"
#include "native/kernels/scalar/exp.h"
#include "native/kernels/scalar/half.h"
#include "native/kernels/scalar/tanh.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {
namespace {

constexpr size_t kMaxHeadSize = 256;  // FORMAT.md, section 1

inline float element(uint16_t half) { return half_to_float(half); }
inline float element(int8_t code) { return (float)code; }
inline float key_scale(const CacheF16&, size_t) { return 1.0f; }
inline float key_scale(const CacheS8& cache, size_t row) { return cache.key_scales[row]; }
inline float value_scale(const CacheF16&, size_t) { return 1.0f; }
inline float value_scale(const CacheS8& cache, size_t row) { return cache.value_scales[row]; }

// What one chunk of positions, or several merged ones, say about one query.
struct Partial {
    float largest;               // largest score
    float weight;                // sum of exp(score - largest)
    float values[kMaxHeadSize];  // sum of exp(score - largest) * value
};

template <class Cache>
float score(const float* query, const Cache& cache, size_t row, size_t head_size) {
    float lane[kLanes] = {};
    // Up to the next multiple of 16 with zeros, as a register would.
    for (size_t i = 0; i < (head_size + kLanes - 1) / kLanes * kLanes; ++i) {
        const float q = i < head_size ? query[i] : 0.0f;
        const float k = i < head_size ? element(cache.keys[row * cache.stride + i]) : 0.0f;
        lane[i % kLanes] = fmaf(q, k, lane[i % kLanes]);
    }
    return tree_sum(lane) * key_scale(cache, row) * (1.0f / sqrtf((float)head_size));
}

// One query's part of a ScoreChange; what it does to the score of a key `distance` positions back.
struct QueryChange {
    float cap;  // 0: none
    float slope;
    bool sloped;

    float changed(float score, size_t distance) const {
        if (cap != 0.0f) score = soft_cap_scalar(score, cap);
        return sloped ? fmaf(-slope, (float)distance, score) : score;
    }
};

// Positions [begin, end) lie in one chunk; the query is at position `own`.
template <class Cache>
void attend_chunk(const float* query, const Cache& cache, size_t head_size, size_t begin,
                  size_t end, size_t own, const QueryChange& change, Partial* out) {
    float scores[kAttentionChunk];
    for (size_t t = begin; t < end; ++t) {
        scores[t - begin] = change.changed(score(query, cache, t % cache.ring, head_size), own - t);
        if (t == begin || scores[t - begin] > out->largest) out->largest = scores[t - begin];
    }
    float lane[kLanes] = {};
    for (size_t i = 0; i < head_size; ++i) out->values[i] = 0.0f;
    for (size_t t = begin; t < end; ++t) {
        const size_t row = t % cache.ring;
        const float e = exp_scalar(scores[t - begin] - out->largest);
        lane[t % kLanes] += e;
        const float weight = e * value_scale(cache, row);
        for (size_t i = 0; i < head_size; ++i) {
            const float value = element(cache.values[row * cache.stride + i]);
            out->values[i] = fmaf(weight, value, out->values[i]);
        }
    }
    out->weight = tree_sum(lane);
}

inline void merge(const Partial& chunk, size_t head_size, Partial* all) {
    const float largest = chunk.largest > all->largest ? chunk.largest : all->largest;
    const float a = exp_scalar(all->largest - largest);
    const float b = exp_scalar(chunk.largest - largest);
    all->largest = largest;
    all->weight = fmaf(all->weight, a, chunk.weight * b);
    for (size_t i = 0; i < head_size; ++i) {
        all->values[i] = fmaf(all->values[i], a, chunk.values[i] * b);
    }
}

template <class Cache>
void attend(const float* queries, size_t count, const Cache& cache, size_t head_size, size_t begin,
            size_t end, const ScoreChange* change, float* out) {
    for (size_t query = 0; query < count; ++query) {
        QueryChange own_change = {};
        if (change != nullptr) {
            own_change.cap = change->cap;
            own_change.sloped = change->slopes != nullptr;
            if (own_change.sloped) own_change.slope = change->slopes[query];
        }
        Partial all = {};
        for (size_t chunk_begin = begin; chunk_begin < end;) {
            const size_t boundary = (chunk_begin / kAttentionChunk + 1) * kAttentionChunk;
            const size_t chunk_end = boundary < end ? boundary : end;
            Partial chunk;
            attend_chunk(queries + query * head_size, cache, head_size, chunk_begin, chunk_end,
                         end - 1, own_change, &chunk);
            if (chunk_begin == begin) {
                all = chunk;
            } else {
                merge(chunk, head_size, &all);
            }
            chunk_begin = chunk_end;
        }
        for (size_t i = 0; i < head_size; ++i) {
            out[query * head_size + i] = all.values[i] / all.weight;
        }
    }
}

}  // namespace
}  // namespace awqe
