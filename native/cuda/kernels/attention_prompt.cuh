// Attention of many rows of one sequence: a prompt. Bits of native/ARITHMETIC.md, sections 7 and 8.
// A CTA takes 64 pairs of (token, query head of one key-value head) and walks the chunks of 64
// positions in ascending order, so nothing is left to merge elsewhere. fp16 tensor cores would sum
// in an order of their own; plain fma keeps the contract's sixteen lanes.
//
// A thread computes 4 x 4 scores and lives with five partial sums each instead of sixteen: the
// lanes are visited in the order in which the tree adds them, 0, 8, 4, 12, 2, 10, ....
#pragma once

#include "attention.cuh"

namespace awqe_cuda {

constexpr int kPromptThreads = 256;
constexpr int kPromptPairs = 64;

// Shared memory: queries and keys, float [d16][68] each, weights, float [64 positions][68 pairs],
// values, half [64][kDims * 16]. 68: 64 and 4 against bank conflicts, still 16-byte pieces. Two
// CTAs of a head of 128 fit a multiprocessor of sm_90, so that one loads while the other computes.
constexpr int kPromptStride = 68;

__device__ __forceinline__ float4 load4(const float* p) {
    return *reinterpret_cast<const float4*>(p);
}

// Adds 4 x 4 products to sums that are one lane of the contract.
__device__ __forceinline__ void fma_tile(float (&sum)[4][4], float4 q, float4 k) {
    const float a[4] = {q.x, q.y, q.z, q.w};
    const float b[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fma(a[i], b[j], sum[i][j]);
}

// Keys transposed to floats [d16][68], values as halves; zeros behind the `stored` positions and
// behind d. A thread takes a position and a quarter of its numbers, so that a warp writes
// neighbouring positions.
template <int kValueStride>
__device__ __forceinline__ void load_chunk_of_prompt(const unsigned char* base,
                                                     const CacheShape& cache, int first, int stored,
                                                     int d, int d16, float* keys,
                                                     unsigned short* values) {
    const int p = threadIdx.x % kAttentionChunk;
    const int part = threadIdx.x / kAttentionChunk;  // of four
    const long long at = (first + p) * d;
    const bool inside = p < stored;
    if (!cache.int8 && d % 32 == 0) {
        const uint4* const key =
            reinterpret_cast<const uint4*>(reinterpret_cast<const unsigned short*>(base) + at);
        const uint4* const value = reinterpret_cast<const uint4*>(
            reinterpret_cast<const unsigned short*>(base + cache.values_offset) + at);
        const int pieces = d / 32;  // of 8 numbers, for this thread
        const uint4 nothing = make_uint4(0, 0, 0, 0);
#pragma unroll 4
        for (int i = 0; i < pieces; ++i) {
            const int piece = part * pieces + i;
            const uint4 k = inside ? key[piece] : nothing;
            const uint4 v = inside ? value[piece] : nothing;
            const unsigned word[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
            for (int e = 0; e < 8; ++e)
                keys[(piece * 8 + e) * kPromptStride + p] =
                    half_to_float((unsigned short)(word[e / 2] >> (e % 2 * 16)));
            *reinterpret_cast<uint4*>(values + p * kValueStride + piece * 8) = v;
        }
        return;
    }
    for (int k = part; k < max(d16, kValueStride); k += kPromptThreads / kAttentionChunk) {
        float key = 0.0f;
        unsigned short value = 0;
        if (inside && k < d) {
            if (cache.int8) {
                const signed char* const codes = reinterpret_cast<const signed char*>(base);
                key = float(codes[at + k]);
                value = float_to_half(float(codes[cache.values_offset + at + k]));
            } else {
                key = half_to_float(reinterpret_cast<const unsigned short*>(base)[at + k]);
                value = reinterpret_cast<const unsigned short*>(base + cache.values_offset)[at + k];
            }
        }
        if (k < d16) keys[k * kPromptStride + p] = key;
        if (k < kValueStride) values[p * kValueStride + k] = value;
    }
}

// rows: of one sequence, positions ascending by one. kDims: dimensions of a thread's outputs,
// head_size / 16 rounded up to a multiple of 4. Grid (ceil(m * n / 64), kv_heads).
template <int kDims, bool kChanged>
__device__ __forceinline__ void attend_prompt(const Row* rows, int m, const Heads& a,
                                              const float* query, const CacheShape& cache,
                                              int layer, float* out) {
    AWQE_DYNAMIC_SHARED(float, shared_floats);
    __shared__ float shared_key_scales[kAttentionChunk];
    __shared__ float shared_value_scales[kAttentionChunk];
    __shared__ float shared_largest[kPromptPairs];
    __shared__ float shared_weight[kPromptPairs];
    __shared__ float shared_before[kPromptPairs];  // factor of what was merged so far
    __shared__ float shared_own[kPromptPairs];     // factor of this chunk
    __shared__ int shared_merge[kPromptPairs];     // 0 skip, 1 copy, 2 merge
    let_next_kernel_start();
    wait_for_kernel_before();
    const int h = blockIdx.y;
    const int d = a.head_size;
    const int d16 = (d + kLanes - 1) / kLanes * kLanes;
    const int n = a.heads / a.kv_heads;
    const int first_pair = blockIdx.x * kPromptPairs;
    const int pairs = min(kPromptPairs, m * n - first_pair);
    float* const queries = shared_floats;               // [d16][68]
    float* const keys = queries + d16 * kPromptStride;  // [d16][68]
    float* const weights = keys + d16 * kPromptStride;  // [64 positions][68 pairs]
    constexpr int kValueStride = kDims * 16;
    unsigned short* const values =  // [64 positions][kValueStride]
        reinterpret_cast<unsigned short*>(weights + kAttentionChunk * kPromptStride);

    for (int i = threadIdx.x; i < kPromptPairs * d16; i += kPromptThreads) {
        const int pair = i / d16;
        const int k = i % d16;
        float q = 0.0f;
        if (pair < pairs && k < d) {
            const int number = first_pair + pair;
            q = query[((long long)(number / n) * a.heads + h * n + number % n) * d + k];
        }
        queries[k * kPromptStride + pair] = q;
    }
    if (threadIdx.x < kPromptPairs) shared_merge[threadIdx.x] = 0;
    const int position0 = rows[0].position;
    const int first_token = first_pair / n;
    const int last_token = (first_pair + pairs - 1) / n;
    const Seen earliest(position0 + first_token, a.window);
    const Seen latest(position0 + last_token, a.window);
    const int head_row = h * kAttentionChunk;
    const float root = __fdiv_rn(1.0f, __fsqrt_rn(float(d)));

    // Scores: 4 pairs x 4 positions; outputs: 4 pairs x kDims dimensions.
    // A warp covers 16 pairs x half of the rest: what its lanes read is one line of shared memory.
    const int lane_of_warp = threadIdx.x & 31;
    const int warp = threadIdx.x / 32;
    const int tile_pair = warp % 4 * 16 + lane_of_warp / 8 * 4;
    const int tile_key = warp / 4 * 32 + lane_of_warp % 8 * 4;
    const int tile_dim = (warp / 4 * 8 + lane_of_warp % 8) * kDims;
    float merged[4][kDims];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < kDims; ++j) merged[i][j] = 0.0f;
    bool any = false;  // whether this thread's row of shared_largest holds something yet

    for (int chunk = earliest.begin / kAttentionChunk; chunk * kAttentionChunk < latest.end;
         ++chunk) {
        const int start = chunk * kAttentionChunk;
        const int stored = min(latest.end - start, kAttentionChunk);
        const unsigned char* const base =
            rows[0].cache + chunk * cache.chunk_bytes + layer * cache.layer_bytes;
        __syncthreads();  // the chunk before is done with
        load_chunk_of_prompt<kValueStride>(base, cache, head_row, stored, d, d16, keys, values);
        if (threadIdx.x < kAttentionChunk) {
            const int p = threadIdx.x;
            float ks = 1.0f;
            float vs = 1.0f;
            if (cache.int8 && p < stored) {
                ks = reinterpret_cast<const float*>(base + cache.key_scales_offset)[head_row + p];
                vs = reinterpret_cast<const float*>(base + cache.value_scales_offset)[head_row + p];
            }
            shared_key_scales[p] = ks;
            shared_value_scales[p] = vs;
        }
        __syncthreads();

        // The tree over lanes, depth first: level[i] waits for its partner.
        float sum8[4][4], sum4[4][4], sum2[4][4], sum1[4][4];
#pragma unroll
        for (int step = 0; step < kLanes; ++step) {
            constexpr int kOrder[kLanes] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
            float lane[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) lane[i][j] = 0.0f;
#pragma unroll 4
            for (int k = kOrder[step]; k < d16; k += kLanes)
                fma_tile(lane, load4(queries + k * kPromptStride + tile_pair),
                         load4(keys + k * kPromptStride + tile_key));
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float value = lane[i][j];
                    if (step % 2 == 0) {
                        sum8[i][j] = value;
                        continue;
                    }
                    value = sum8[i][j] + value;
                    if (step % 4 == 1) {
                        sum4[i][j] = value;
                        continue;
                    }
                    value = sum4[i][j] + value;
                    if (step % 8 == 3) {
                        sum2[i][j] = value;
                        continue;
                    }
                    value = sum2[i][j] + value;
                    if (step == 7) {
                        sum1[i][j] = value;
                        continue;
                    }
                    sum1[i][j] = sum1[i][j] + value;
                }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float scale = shared_key_scales[tile_key + j];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float score = sum1[i][j] * scale * root;
                if (kChanged) {  // also where nothing is seen, and where it changes nothing
                    const int number = first_pair + tile_pair + i;
                    score = changed_score(a, h * n + number % n, score,
                                          position0 + number / n - start - tile_key - j);
                }
                weights[(tile_key + j) * kPromptStride + tile_pair + i] = score;
            }
        }
        __syncthreads();

        // Four threads per pair: exponentials, and the sum over lanes of positions.
        {
            const int pair = threadIdx.x / 4;
            const int part = threadIdx.x % 4;
            const int number = first_pair + min(pair, pairs - 1);
            const Seen seen(position0 + number / n, a.window);
            const int from = max(seen.begin - start, 0);
            const int to = min(seen.end - start, kAttentionChunk);
            float own = __int_as_float(0xff800000);
            for (int p = part; p < kAttentionChunk; p += 4)
                if (p >= from && p < to) own = fmaxf(own, weights[p * kPromptStride + pair]);
            own = fmaxf(own, __shfl_xor_sync(~0u, own, 1));
            own = fmaxf(own, __shfl_xor_sync(~0u, own, 2));
            // Lanes part, part + 4, part + 8, part + 12 of the contract.
            float lane[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int round = 0; round < 4; ++round)
#pragma unroll
                for (int l = 0; l < 4; ++l) {
                    const int p = round * kLanes + l * 4 + part;
                    const bool visible = p >= from && p < to;
                    float* const weight = weights + p * kPromptStride + pair;
                    const float e = visible ? exponential(*weight - own) : 0.0f;
                    *weight = visible ? e * shared_value_scales[p] : 0.0f;
                    if (visible) lane[l] = lane[l] + e;
                }
            // Width 8: lane i with i + 8; width 4: i with i + 4; then across the threads.
            float sum = (lane[0] + lane[2]) + (lane[1] + lane[3]);
            sum = sum + __shfl_xor_sync(~0u, sum, 2);
            sum = sum + __shfl_xor_sync(~0u, sum, 1);
            if (part == 0) {
                if (from >= to) {
                    shared_merge[pair] = 0;
                } else if (!any) {
                    shared_merge[pair] = 1;
                    shared_largest[pair] = own;
                    shared_weight[pair] = sum;
                    any = true;
                } else {
                    const float before = shared_largest[pair];
                    const float largest = fmaxf(before, own);
                    const float factor_before = exponential(before - largest);
                    const float factor_own = exponential(own - largest);
                    shared_merge[pair] = 2;
                    shared_before[pair] = factor_before;
                    shared_own[pair] = factor_own;
                    shared_largest[pair] = largest;
                    shared_weight[pair] = fma(shared_weight[pair], factor_before, sum * factor_own);
                }
            }
        }
        __syncthreads();

        float sums[4][kDims];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < kDims; ++j) sums[i][j] = 0.0f;
        // Positions that a pair does not see have the weight 0, which changes no sum: keys and
        // values behind the last stored position are zeros here.
#pragma unroll 4
        for (int p = 0; p < stored; ++p) {
            const float4 e = load4(weights + p * kPromptStride + tile_pair);
            const float w[4] = {e.x, e.y, e.z, e.w};
            unsigned packed[kDims / 2];
            const unsigned short* const value = values + p * kValueStride + tile_dim;
            if constexpr (kDims == 8) {
                const uint4 v = *reinterpret_cast<const uint4*>(value);
                packed[0] = v.x, packed[1] = v.y, packed[2] = v.z, packed[3] = v.w;
            } else {
                const uint2 v = *reinterpret_cast<const uint2*>(value);
                packed[0] = v.x, packed[1] = v.y;
            }
#pragma unroll
            for (int j = 0; j < kDims; ++j) {
                const float v = half_to_float((unsigned short)(packed[j / 2] >> (j % 2 * 16)));
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[i][j] = fma(w[i], v, sums[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int pair = tile_pair + i;
            const int merge = shared_merge[pair];
            if (merge == 0) continue;
            const float before = merge == 2 ? shared_before[pair] : 0.0f;
            const float own = merge == 2 ? shared_own[pair] : 1.0f;
#pragma unroll
            for (int j = 0; j < kDims; ++j)
                merged[i][j] =
                    merge == 1 ? sums[i][j] : fma(merged[i][j], before, sums[i][j] * own);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int pair = tile_pair + i;
        if (pair >= pairs) continue;
        const int number = first_pair + pair;
        float* const to = out + ((long long)(number / n) * a.heads + h * n + number % n) * d;
        const float weight = shared_weight[pair];
#pragma unroll
        for (int j = 0; j < kDims; ++j)
            if (tile_dim + j < d) to[tile_dim + j] = __fdiv_rn(merged[i][j], weight);
    }
}

}  // namespace awqe_cuda
