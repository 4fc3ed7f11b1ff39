// Attention of many rows of one sequence, a prompt, on fp16 tensor cores: the option
// AWQE_ATTENTION_TENSOR. Queries, keys, values and weights are rounded to halves, sums are floats in
// the tensor cores' own order: not the bits of native/ARITHMETIC.md, whose section 7 has the figures.
//
// A CTA takes 64 pairs of (token, query head of one key-value head), a warp 16 of them, and walks
// the chunks of 64 positions; the next chunk is on its way while one is computed. A warp holds its
// queries and outputs in registers, and what it multiplies values with never leaves them.
#pragma once

#include "attention.cuh"

namespace awqe_cuda {

constexpr int kTensorWarps = 4;
constexpr int kTensorThreads = kTensorWarps * 32;
constexpr int kTensorPairs = kTensorWarps * 16;
// CTAs of a multiprocessor at once: by shared memory, of which sm_87 has less.
template <int kHead>
constexpr int kTensorTogether = kHead == 128 && AWQE_SHARED_KILOBYTES < 200 ? 2 : 3;
constexpr float kLog2e = 0x1.715476p+0f;

// 16 bytes of a row of keys or values in shared memory, [64][kHead] halves. Pieces are exchanged by
// the row's number, so that eight rows' same piece lies in all the banks.
template <int kHead>
__device__ __forceinline__ unsigned short* piece_of(unsigned short* tile, int row, int piece) {
    return tile + row * kHead + (piece ^ (row & 7)) * 8;
}

// One chunk's keys or values of one head to shared memory; zeros behind the `stored` positions and
// behind d, a multiple of 8. int8 codes become the numbers they stand for, rounded to halves.
template <int kHead>
__device__ __forceinline__ void fetch_tile(unsigned short* tile, const unsigned char* from,
                                           const float* scales, int stored, int d) {
    constexpr int kPieces = kHead / 8;
    const int pieces = d / 8;
    if (scales == nullptr && stored == kAttentionChunk && d == kHead) {
        // Most chunks: as it lies there, and rows of a thread are exchanged alike.
        constexpr int kRows = kTensorThreads / kPieces;
        static_assert(kRows % 8 == 0, "rows of a thread have one remainder by 8");
        unsigned short* const to =
            piece_of<kHead>(tile, threadIdx.x / kPieces, threadIdx.x % kPieces);
#pragma unroll
        for (int i = 0; i < kAttentionChunk / kRows; ++i)
            copy_async16(to + i * kRows * kHead, from + (threadIdx.x + i * kTensorThreads) * 16);
        return;
    }
#pragma unroll 4
    for (int i = threadIdx.x; i < kAttentionChunk * kPieces; i += kTensorThreads) {
        const int row = i / kPieces;
        const int piece = i % kPieces;
        unsigned short* const to = piece_of<kHead>(tile, row, piece);
        if (row >= stored || piece >= pieces) {
            *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
        } else if (scales == nullptr) {
            copy_async16(to, from + (row * d + piece * 8) * 2);
        } else {
            const uint2 codes = *reinterpret_cast<const uint2*>(from + row * d + piece * 8);
            const float scale = scales[row];
            const auto number = [&](int k) {
                const unsigned word = k < 4 ? codes.x : codes.y;
                return float((signed char)(word >> (k % 4 * 8))) * scale;
            };
            *reinterpret_cast<uint4*>(to) = make_uint4(
                pack_halves(number(0), number(1)), pack_halves(number(2), number(3)),
                pack_halves(number(4), number(5)), pack_halves(number(6), number(7)));
        }
    }
}

// rows: of one sequence, positions ascending by one. kHead: d rounded up to 64 or 128. Grid
// (kv_heads, ceil(m * n / 64)). Shared memory: halves [2 stages][keys, values][64][kHead].
template <int kHead>
__device__ __forceinline__ void attend_on_tensor_cores(const Row* rows, int m, const Heads& a,
                                                       const float* query, const CacheShape& cache,
                                                       int layer, float* out) {
    AWQE_DYNAMIC_SHARED(unsigned short, shared_halves);
    constexpr int kTile = kAttentionChunk * kHead;
    constexpr int kSteps = kHead / 16;           // of 16 dimensions
    constexpr int kKeyTiles = kAttentionChunk / 8;
    constexpr int kValueTiles = kHead / 8;
    const float nothing = __int_as_float(0xff800000);
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int quarter = lane & 3;
    const int h = blockIdx.x;
    const int d = a.head_size;
    const int n = a.heads / a.kv_heads;
    // Late tokens see most: their CTAs begin first, of all heads.
    const int first_pair = int(gridDim.y - 1 - blockIdx.y) * kTensorPairs;
    const int last_pair = min(first_pair + kTensorPairs, m * n) - 1;
    let_next_kernel_start();
    wait_for_kernel_before();

    const int position0 = rows[0].position;
    const unsigned char* const sequence = rows[0].cache + layer * cache.layer_bytes;
    const int end = position0 + last_pair / n + 1;
    const int first_chunk = Seen(position0 + first_pair / n, a.window).begin / kAttentionChunk;
    const int end_chunk = (end + kAttentionChunk - 1) / kAttentionChunk;
    const int head_row = h * kAttentionChunk;
    const auto fetch = [&](int chunk) {
        if (chunk < end_chunk) {
            const unsigned char* const base = sequence + chunk * cache.chunk_bytes;
            unsigned short* const to = shared_halves + (chunk & 1) * (2 * kTile);
            const int stored = min(end - chunk * kAttentionChunk, kAttentionChunk);
            const long long at = (long long)head_row * d * (cache.int8 ? 1 : 2);
            const auto scales = [&](long long offset) {
                return cache.int8 ? reinterpret_cast<const float*>(base + offset) + head_row
                                  : nullptr;
            };
            fetch_tile<kHead>(to, base + at, scales(cache.key_scales_offset), stored, d);
            fetch_tile<kHead>(to + kTile, base + cache.values_offset + at,
                              scales(cache.value_scales_offset), stored, d);
        }
        commit_copies();
    };
    fetch(first_chunk);

    // A lane has rows lane / 4 and lane / 4 + 8 of its warp's 16 pairs.
    const int warp_pair = min(first_pair + warp * 16, last_pair);
    int token[2], head[2];
    const float* from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int number = min(first_pair + warp * 16 + i * 8 + (lane >> 2), last_pair);
        token[i] = number / n;
        head[i] = h * n + number % n;
        from[i] = query + ((long long)token[i] * a.heads + head[i]) * d;
    }
    const float root = __fdiv_rn(1.0f, __fsqrt_rn(float(d)));
    unsigned queries[kSteps][4];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int k = s * 16 + i / 2 * 8 + quarter * 2;
            float2 q = make_float2(0.0f, 0.0f);
            if (k < d) q = *reinterpret_cast<const float2*>(from[i % 2] + k);
            queries[s][i] = pack_halves(q.x * root, q.y * root);
        }
    const Seen seen[2] = {Seen(position0 + token[0], a.window),
                          Seen(position0 + token[1], a.window)};
    // Between these every pair of the warp sees every position.
    const int all_end = position0 + warp_pair / n + 1;
    const int all_begin =
        Seen(position0 + min(warp_pair + 15, last_pair) / n, a.window).begin;
    const bool changed = a.score_cap != 0.0f || a.slopes != nullptr;

    float outputs[kValueTiles][4];
#pragma unroll
    for (int j = 0; j < kValueTiles; ++j)
#pragma unroll
        for (float& value : outputs[j]) value = 0.0f;
    float largest[2] = {nothing, nothing};
    float weight[2] = {0.0f, 0.0f};  // of this lane's positions

    for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
        const int start = chunk * kAttentionChunk;
        wait_for_copies<0>();
        __syncthreads();  // this chunk is there, and the one before is done with
        fetch(chunk + 1);
        unsigned short* const keys = shared_halves + (chunk & 1) * (2 * kTile);
        unsigned short* const values = keys + kTile;

        float scores[kKeyTiles][4];  // [8 positions][row * 2 + position of two]
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
            for (float& score : scores[j]) score = 0.0f;
        const int row_of_lane = lane & 7;
        const int matrix = lane >> 3;
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
#pragma unroll
            for (int j = 0; j < kKeyTiles; j += 2) {
                unsigned b[4];
                load_matrices(b, piece_of<kHead>(keys, j * 8 + matrix / 2 * 8 + row_of_lane,
                                                 s * 2 + matrix % 2));
                multiply_halves(scores[j], queries[s], b[0], b[1]);
                multiply_halves(scores[j + 1], queries[s], b[2], b[3]);
            }
        if (changed) {
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int position = start + j * 8 + quarter * 2 + i % 2;
                    scores[j][i] = changed_score(a, head[i / 2], scores[j][i],
                                                 position0 + token[i / 2] - position);
                }
        }
        if (start + kAttentionChunk > all_end || start < all_begin) {
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int position = start + j * 8 + quarter * 2 + i % 2;
                    if (position < seen[i / 2].begin || position >= seen[i / 2].end)
                        scores[j][i] = nothing;
                }
        }

        // exp(score - largest) as powers of two; what was summed shrinks with the largest.
        float shift[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float own = largest[r];
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j)
                own = fmaxf(own, fmaxf(scores[j][r * 2], scores[j][r * 2 + 1]));
            own = fmaxf(own, __shfl_xor_sync(~0u, own, 1));
            own = fmaxf(own, __shfl_xor_sync(~0u, own, 2));
            shift[r] = own == nothing ? 0.0f : own * -kLog2e;  // nothing seen so far
            const float factor = power_of_two(fma(largest[r], kLog2e, shift[r]));
            largest[r] = own;
            weight[r] = weight[r] * factor;
#pragma unroll
            for (int j = 0; j < kValueTiles; ++j) {
                outputs[j][r * 2] = outputs[j][r * 2] * factor;
                outputs[j][r * 2 + 1] = outputs[j][r * 2 + 1] * factor;
            }
        }
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[j][i] = power_of_two(fma(scores[j][i], kLog2e, shift[i / 2]));
                weight[i / 2] = weight[i / 2] + scores[j][i];
            }

#pragma unroll
        for (int s = 0; s < kAttentionChunk / 16; ++s) {
            const unsigned e[4] = {pack_halves(scores[2 * s][0], scores[2 * s][1]),
                                   pack_halves(scores[2 * s][2], scores[2 * s][3]),
                                   pack_halves(scores[2 * s + 1][0], scores[2 * s + 1][1]),
                                   pack_halves(scores[2 * s + 1][2], scores[2 * s + 1][3])};
#pragma unroll
            for (int j = 0; j < kValueTiles; j += 2) {
                unsigned b[4];
                load_matrices_turned(b, piece_of<kHead>(values, s * 16 + matrix % 2 * 8 + row_of_lane,
                                                        j + matrix / 2));
                multiply_halves(outputs[j], e, b[0], b[1]);
                multiply_halves(outputs[j + 1], e, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = weight[r];
        sum = sum + __shfl_xor_sync(~0u, sum, 1);
        sum = sum + __shfl_xor_sync(~0u, sum, 2);
        const float inverse = __fdiv_rn(1.0f, sum);
        if (first_pair + warp * 16 + r * 8 + (lane >> 2) > last_pair) continue;
        float* const to = out + ((long long)token[r] * a.heads + head[r]) * d;
#pragma unroll
        for (int j = 0; j < kValueTiles; ++j) {
            const int k = j * 8 + quarter * 2;
            if (k < d)
                *reinterpret_cast<float2*>(to + k) =
                    make_float2(outputs[j][r * 2] * inverse, outputs[j][r * 2 + 1] * inverse);
        }
    }
}

}  // namespace awqe_cuda
