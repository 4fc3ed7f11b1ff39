// Attention over sixteen lanes, for either cache (native/ARITHMETIC.md, sections 7 and 8). Include
// it after a lanes_<isa>.h.
//
// Query heads go in fours, which share every load of a key or a value, or alone. Scores and weights
// of a chunk lie position by position, the queries of a position side by side.
#pragma once

#include <math.h>
#include <string.h>

#include "native/kernels/attention/attention_s8.h"
#include "native/kernels/lanes/exp_lanes.h"
#include "native/kernels/lanes/tanh_lanes.h"

namespace awqe {
namespace {

constexpr size_t kMaxHeadSize = 256;  // FORMAT.md, section 1

inline Lanes load_elements(const uint16_t* row, size_t i, size_t head_size) {
    return i + 16 <= head_size ? load_half(row + i) : load_half_first(row + i, head_size - i);
}
inline Lanes load_elements(const int8_t* row, size_t i, size_t head_size) {
    return i + 16 <= head_size ? load_int8(row + i) : load_int8_first(row + i, head_size - i);
}

// x[row of the chunk, query] times the row's scale; an fp16 cache has none.
template <size_t kQueries>
inline void multiply_rows(float* x, const float* scales, size_t count) {
    static_assert(kQueries == 1 || kQueries == 4);
    constexpr size_t kRows = 16 / kQueries;  // in sixteen lanes
    size_t t = 0;
    for (; t + kRows <= count; t += kRows) {
        float* const rows = x + t * kQueries;
        const Lanes scale = kQueries == 1 ? load(scales + t) : load_each_four_times(scales + t);
        store(rows, mul(load(rows), scale));
    }
    for (; t < count; ++t) {
        for (size_t q = 0; q < kQueries; ++q) x[t * kQueries + q] *= scales[t];
    }
}
template <size_t kQueries>
inline void scale_scores(const CacheF16&, size_t, size_t, float*) {}
template <size_t kQueries>
inline void scale_scores(const CacheS8& cache, size_t row, size_t count, float* scores) {
    multiply_rows<kQueries>(scores, cache.key_scales + row, count);
}
template <size_t kQueries>
inline void scale_weights(const CacheF16&, size_t, size_t, float*) {}
template <size_t kQueries>
inline void scale_weights(const CacheS8& cache, size_t row, size_t count, float* weights) {
    multiply_rows<kQueries>(weights, cache.value_scales + row, count);
}

// Asks for a head's part of a row, for the second cache. Rows lie a stride apart, which no core
// foresees for long: four rows of eight heads of 64 halves fill a page.
template <class Element>
inline void ask_for_row(const Element* row, size_t head_size) {
    constexpr size_t kLine = 64 / sizeof(Element);
    for (size_t i = 0; i < head_size; i += kLine) __builtin_prefetch(row + i, 0, 2);
}

// What the scores of one position ask for: its value, which is read when the chunk is scored, and
// the key a chunk ahead.
template <class Element>
inline void ask_ahead(const Element* key, const Element* value, size_t stride, size_t head_size) {
    ask_for_row(key + kAttentionChunk * stride, head_size);
    ask_for_row(value, head_size);
}

// scores: float [count, 4]. queries: float [4, kMaxHeadSize], padded with zeros. keys, values:
// [count, stride].
template <class Element>
inline void score_four_queries(const float* queries, const Element* keys, const Element* values,
                               size_t stride, size_t head_size, size_t count, float* scores) {
    for (size_t t = 0; t < count; ++t) {
        const Element* key = keys + t * stride;
        ask_ahead(key, values + t * stride, stride, head_size);
        Lanes a = zero(), b = zero(), c = zero(), d = zero();
        for (size_t i = 0; i < head_size; i += 16) {
            const Lanes k = load_elements(key, i, head_size);
            a = fma(load(queries + i), k, a);
            b = fma(load(queries + kMaxHeadSize + i), k, b);
            c = fma(load(queries + 2 * kMaxHeadSize + i), k, c);
            d = fma(load(queries + 3 * kMaxHeadSize + i), k, d);
        }
        sum_four(scores + t * 4, a, b, c, d);
    }
}

// scores: float [count, 1] and room for three more. Four positions at a time.
template <class Element>
inline void score_one_query(const float* query, const Element* keys, const Element* values,
                            size_t stride, size_t head_size, size_t count, float* scores) {
    for (size_t t = 0; t < count; t += 4) {
        // Past the end the last position again: computed and overwritten or ignored.
        const size_t last = count - 1;
        const Element* k0 = keys + t * stride;
        const Element* k1 = keys + (t + 1 < count ? t + 1 : last) * stride;
        const Element* k2 = keys + (t + 2 < count ? t + 2 : last) * stride;
        const Element* k3 = keys + (t + 3 < count ? t + 3 : last) * stride;
        for (size_t next = t; next < t + 4; ++next) {
            ask_ahead(keys + next * stride, values + next * stride, stride, head_size);
        }
        Lanes a = zero(), b = zero(), c = zero(), d = zero();
        for (size_t i = 0; i < head_size; i += 16) {
            const Lanes q = load(query + i);
            a = fma(q, load_elements(k0, i, head_size), a);
            b = fma(q, load_elements(k1, i, head_size), b);
            c = fma(q, load_elements(k2, i, head_size), c);
            d = fma(q, load_elements(k3, i, head_size), d);
        }
        sum_four(scores + t, a, b, c, d);
    }
}

// scores: float [count, kQueries], the products of queries and keys at neighbouring positions, the
// first of them `distance` back: divided by sqrt(head_size) and changed. slopes: of these queries.
template <size_t kQueries>
inline void change_scores(float divisor, float cap, const float* slopes, size_t distance,
                          size_t count, float* scores) {
    constexpr size_t kPositions = 16 / kQueries;  // in sixteen lanes
    float of_lanes[16];
    for (size_t i = 0; i < 16; ++i) of_lanes[i] = slopes == nullptr ? 0 : slopes[i % kQueries];
    const Lanes slope = load(of_lanes);
    for (size_t i = 0; i < 16; ++i) of_lanes[i] = (float)distance - (float)(i / kQueries);
    Lanes distances = load(of_lanes);
    for (size_t t = 0; t < count; t += kPositions) {
        float* const from = scores + t * kQueries;
        const size_t n = count - t < kPositions ? (count - t) * kQueries : 16;
        Lanes score = mul(load_first(from, n), broadcast(divisor));
        if (cap != 0.0f) score = soft_cap(score, broadcast(cap));
        if (slopes != nullptr) score = fnma(slope, distances, score);
        store_first(from, n, score);
        distances = sub(distances, broadcast((float)kPositions));
    }
}

// The largest of 16 lanes for each query: lane i belongs to query i % kQueries.
template <size_t kQueries>
inline void largest_of_each(Lanes v, float* out) {
    if constexpr (kQueries == 1) {
        out[0] = largest(v);
    } else {
        float all[16];
        store(all, v);
        for (size_t q = 0; q < kQueries; ++q) {
            out[q] = all[q];
            for (size_t i = q; i < 16; i += kQueries) out[q] = all[i] > out[q] ? all[i] : out[q];
        }
    }
}

// The sums of a chunk's weights e: float [64, kQueries], by the tree over position mod 16.
template <size_t kQueries>
inline void sum_of_each(const float* e, float* out) {
    Lanes lane[kQueries];  // lane[0 ... kQueries) hold positions 0 ... 15, position by position
    for (size_t i = 0; i < kQueries; ++i) {
        lane[i] = load(e + i * 16);
        for (size_t round = 1; round < kAttentionChunk / 16; ++round) {
            lane[i] = add(lane[i], load(e + (round * kQueries + i) * 16));
        }
    }
    if constexpr (kQueries == 1) {
        out[0] = sum(lane[0]);
    } else {
        static_assert(kQueries == 4);
        float all[16];  // [position mod 4, query], after the levels 8 and 4 of the tree
        store(all, add(add(lane[0], lane[2]), add(lane[1], lane[3])));
        for (size_t q = 0; q < 4; ++q) out[q] = (all[q] + all[8 + q]) + (all[4 + q] + all[12 + q]);
    }
}

// Adds one chunk's weighted values to out: float [kQueries, head_size], kColumns registers of
// columns from i.
template <size_t kQueries, size_t kColumns, class Element>
inline void add_values(const float* e, const Element* values, size_t stride, size_t head_size,
                       size_t i, size_t count, bool first, const float* keep, const float* scale,
                       float* out) {
    Lanes sums[kQueries][kColumns];
    for (size_t q = 0; q < kQueries; ++q) {
        for (size_t c = 0; c < kColumns; ++c) sums[q][c] = zero();
    }
    for (size_t t = 0; t < count; ++t) {
        for (size_t c = 0; c < kColumns; ++c) {
            const Lanes v = load_elements(values + t * stride, i + 16 * c, head_size);
            for (size_t q = 0; q < kQueries; ++q) {
                sums[q][c] = fma(broadcast(e[t * kQueries + q]), v, sums[q][c]);
            }
        }
    }
    for (size_t q = 0; q < kQueries; ++q) {
        for (size_t c = 0; c < kColumns; ++c) {
            const size_t column = i + 16 * c;
            const size_t n = head_size - column < 16 ? head_size - column : 16;
            float* target = out + q * head_size + column;
            Lanes sum_of_column = sums[q][c];
            if (!first) {
                sum_of_column = fma(load_first(target, n), broadcast(keep[q]),
                                    mul(sum_of_column, broadcast(scale[q])));
            }
            store_first(target, n, sum_of_column);
        }
    }
}

inline float exp_of_one(float x) {
    float all[16];
    store(all, exp(broadcast(x)));
    return all[0];
}

// kQueries queries over positions [begin, end). slopes: of these queries, or NULL. out: float
// [kQueries, head_size].
template <size_t kQueries, class Cache>
inline void attend(const float* queries, const Cache& cache, size_t head_size, size_t begin,
                   size_t end, const ScoreChange* change, const float* slopes, float* out) {
    const size_t stride = cache.stride;
    alignas(64) float padded[kQueries * kMaxHeadSize];
    memset(padded, 0, sizeof(padded));
    for (size_t q = 0; q < kQueries; ++q) {
        memcpy(padded + q * kMaxHeadSize, queries + q * head_size, head_size * sizeof(float));
    }
    const float divisor = 1.0f / sqrtf((float)head_size);
    const Lanes scale_of_scores = broadcast(change == nullptr ? divisor : 1.0f);
    float all_largest[kQueries] = {};
    float all_weight[kQueries] = {};
    for (size_t t = begin; t < end;) {
        const size_t base = t / kAttentionChunk * kAttentionChunk;
        const size_t stop = base + kAttentionChunk < end ? base + kAttentionChunk : end;
        const bool first = t == begin;
        // e[position in the chunk, query]: scores, then weights. Three floats more for
        // score_one_query.
        alignas(64) float e[kAttentionChunk * kQueries + 4];
        float* scores = e + (t - base) * kQueries;
        const size_t row = base % cache.ring + (t - base);
        const size_t count = stop - t;
        const auto* const keys = cache.keys + row * stride;
        const auto* const values = cache.values + row * stride;
        if constexpr (kQueries == 4) {
            score_four_queries(padded, keys, values, stride, head_size, count, scores);
        } else {
            static_assert(kQueries == 1);
            score_one_query(padded, keys, values, stride, head_size, count, scores);
        }
        scale_scores<kQueries>(cache, row, count, scores);
        if (change != nullptr) {
            change_scores<kQueries>(divisor, change->cap, slopes, end - 1 - t, count, scores);
        }
        // Positions outside [t, stop) repeat the first score, so that they change no maximum.
        for (size_t j = 0; j < kAttentionChunk; ++j) {
            if (base + j >= t && base + j < stop) continue;
            memcpy(e + j * kQueries, scores, kQueries * sizeof(float));
        }
        Lanes maxima = mul(load(e), scale_of_scores);
        for (size_t i = 0; i < kAttentionChunk * kQueries; i += 16) {
            const Lanes scaled = mul(load(e + i), scale_of_scores);
            store(e + i, scaled);
            maxima = max(maxima, scaled);
        }
        float chunk_largest[kQueries];
        largest_of_each<kQueries>(maxima, chunk_largest);
        float repeated[16];
        for (size_t i = 0; i < 16; ++i) repeated[i] = chunk_largest[i % kQueries];
        for (size_t i = 0; i < kAttentionChunk * kQueries; i += 16) {
            store(e + i, exp(sub(load(e + i), load(repeated))));
        }
        memset(e, 0, (t - base) * kQueries * sizeof(float));
        memset(e + (stop - base) * kQueries, 0,
               (base + kAttentionChunk - stop) * kQueries * sizeof(float));
        float chunk_weight[kQueries];
        sum_of_each<kQueries>(e, chunk_weight);

        float keep[kQueries] = {};
        float scale[kQueries] = {};
        for (size_t q = 0; q < kQueries; ++q) {
            if (first) {
                all_largest[q] = chunk_largest[q];
                all_weight[q] = chunk_weight[q];
                continue;
            }
            const float both =
                chunk_largest[q] > all_largest[q] ? chunk_largest[q] : all_largest[q];
            keep[q] = exp_of_one(all_largest[q] - both);
            scale[q] = exp_of_one(chunk_largest[q] - both);
            all_largest[q] = both;
            all_weight[q] = fmaf(all_weight[q], keep[q], chunk_weight[q] * scale[q]);
        }
        float* weights = e + (t - base) * kQueries;
        scale_weights<kQueries>(cache, row, count, weights);
        size_t i = 0;
        // Sums may take half of the registers; more of them would go through the stack.
        if constexpr (kQueries * 2 * sizeof(Lanes) <= kRegisterBytes / 2) {
            for (; i + 32 <= head_size; i += 32) {
                add_values<kQueries, 2>(weights, values, stride, head_size, i, count, first, keep,
                                        scale, out);
            }
        }
        for (; i < head_size; i += 16) {
            add_values<kQueries, 1>(weights, values, stride, head_size, i, count, first, keep,
                                    scale, out);
        }
        t = stop;
    }
    for (size_t q = 0; q < kQueries; ++q) {
        for (size_t i = 0; i < head_size; i += 16) {
            const size_t n = head_size - i < 16 ? head_size - i : 16;
            float* target = out + q * head_size + i;
            store_first(target, n, div(load_first(target, n), broadcast(all_weight[q])));
        }
    }
}

template <class Cache>
inline void attention_lanes(const float* queries, size_t count, const Cache& cache,
                            size_t head_size, size_t begin, size_t end, const ScoreChange* change,
                            float* out) {
    const float* const slopes = change == nullptr ? nullptr : change->slopes;
    const auto from = [&](size_t query) { return slopes == nullptr ? nullptr : slopes + query; };
    size_t query = 0;
    for (; query + 4 <= count; query += 4) {
        attend<4>(queries + query * head_size, cache, head_size, begin, end, change, from(query),
                  out + query * head_size);
    }
    for (; query < count; ++query) {
        attend<1>(queries + query * head_size, cache, head_size, begin, end, change, from(query),
                  out + query * head_size);
    }
}

}  // namespace
}  // namespace awqe
