// Attention in plain loops. Contract: attention_f16.h; arithmetic: native/ARITHMETIC.md, section 7.
#include <math.h>

#include "native/kernels/attention/attention_f16.h"
#include "native/kernels/scalar/exp.h"
#include "native/kernels/scalar/half.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {
namespace {

constexpr size_t kMaxHeadSize = 256;  // FORMAT.md, section 1

// What one chunk of positions, or several merged ones, say about one query.
struct Partial {
    float largest;               // largest score
    float weight;                // sum of exp(score - largest)
    float values[kMaxHeadSize];  // sum of exp(score - largest) * value
};

float score(const float* query, const uint16_t* key, size_t head_size) {
    float lane[kLanes] = {};
    // Up to the next multiple of 16 with zeros, as a register would.
    for (size_t i = 0; i < (head_size + kLanes - 1) / kLanes * kLanes; ++i) {
        const float q = i < head_size ? query[i] : 0.0f;
        const float k = i < head_size ? half_to_float(key[i]) : 0.0f;
        lane[i % kLanes] = fmaf(q, k, lane[i % kLanes]);
    }
    return tree_sum(lane) * (1.0f / sqrtf((float)head_size));
}

// Positions [begin, end) lie in one chunk.
void attend_chunk(const float* query, const uint16_t* keys, const uint16_t* values, size_t stride,
                  size_t head_size, size_t begin, size_t end, Partial* out) {
    float weights[kAttentionChunk];
    for (size_t t = begin; t < end; ++t) {
        weights[t - begin] = score(query, keys + t * stride, head_size);
        if (t == begin || weights[t - begin] > out->largest) out->largest = weights[t - begin];
    }
    float lane[kLanes] = {};
    for (size_t i = 0; i < head_size; ++i) out->values[i] = 0.0f;
    for (size_t t = begin; t < end; ++t) {
        const float e = exp_scalar(weights[t - begin] - out->largest);
        lane[t % kLanes] += e;
        for (size_t i = 0; i < head_size; ++i) {
            out->values[i] = fmaf(e, half_to_float(values[t * stride + i]), out->values[i]);
        }
    }
    out->weight = tree_sum(lane);
}

void merge(const Partial& chunk, size_t head_size, Partial* all) {
    const float largest = chunk.largest > all->largest ? chunk.largest : all->largest;
    const float a = exp_scalar(all->largest - largest);
    const float b = exp_scalar(chunk.largest - largest);
    all->largest = largest;
    all->weight = fmaf(all->weight, a, chunk.weight * b);
    for (size_t i = 0; i < head_size; ++i) {
        all->values[i] = fmaf(all->values[i], a, chunk.values[i] * b);
    }
}

}  // namespace

void attention_f16_reference(const float* queries, size_t count, const uint16_t* keys,
                             const uint16_t* values, size_t stride, size_t head_size, size_t begin,
                             size_t end, float* out) {
    for (size_t query = 0; query < count; ++query) {
        Partial all = {};
        for (size_t chunk_begin = begin; chunk_begin < end;) {
            const size_t boundary = (chunk_begin / kAttentionChunk + 1) * kAttentionChunk;
            const size_t chunk_end = boundary < end ? boundary : end;
            Partial chunk;
            attend_chunk(queries + query * head_size, keys, values, stride, head_size, chunk_begin,
                         chunk_end, &chunk);
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

}  // namespace awqe
