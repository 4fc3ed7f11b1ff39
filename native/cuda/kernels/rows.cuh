// Packed matrices times 2 to 8 rows of quantised inputs: still bound by memory, so every weight is
// read once for all rows, and the int8 tensor cores do the rest. A CTA computes 16 outputs; its
// warps take chunks of inputs in turn, and hand the float accumulators on in ascending order, so
// that one chain per output stays what the contract asks for. Every warp has a barrier at which it
// meets the one that hands on to it.
#pragma once

#include "fragments.cuh"

namespace awqe_cuda {

constexpr int kRowsWarps = 8;
constexpr int kRowsTokens = 8;
constexpr int kRowsOutputs = 16;

// out: float [m, rows]; add: added to it.
template <int kBits, int kParts>
__device__ __forceinline__ void few_rows(const Products& products, const Activations& x, int m,
                                         bool add) {
    __shared__ float4 carry[32];
    constexpr bool kWhole = kParts == 1;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int row = lane >> 2;
    const int quarter = lane & 3;
    const int r = row & 3;
    let_next_kernel_start();

    int number = 0;
    int tile = blockIdx.x;
    while (number + 1 < products.count) {
        const int tiles = (products.matrix[number].rows + kRowsOutputs - 1) / kRowsOutputs;
        if (tile < tiles) break;
        tile -= tiles;
        ++number;
    }
    const Matrix& w = products.matrix[number];
    const int last_block = (w.rows + kBlockRows - 1) / kBlockRows - 1;
    const int block = tile * (kRowsOutputs / kBlockRows) + (row >> 2);
    // Rows 0 ... 7 of the tile, then 8 ... 15: two blocks on. Past the end: any block.
    const unsigned char* const top = w.blocks + (long long)min(block, last_block) * w.block_bytes;
    const unsigned char* const low =
        w.blocks + (long long)min(block + 2, last_block) * w.block_bytes;
    const int chunks = (w.groups + kParts - 1) / kParts;
    constexpr int kChunkBytes = kChunk * kBlockRows * kLowBits<kBits> / 8;
    constexpr int kHighBytes = kChunk * kBlockRows * (kBits - kLowBits<kBits>) / 8;

    const int token = min(row, m - 1);
    const signed char* const codes = x.codes + (long long)token * x.code_stride;
    const int token0 = min(quarter * 2, m - 1);
    const int token1 = min(quarter * 2 + 1, m - 1);
    bool first_chunk = true;
    for (int c = warp; c < chunks; c += kRowsWarps) {
        RawRow<kBits> a, b;
        const int limit = w.padded_columns - c * kChunk;
        const long long at = (long long)c * kChunkBytes;
        load_raw<kBits, kWhole, true>(a, top + w.codes_offset + at,
                                      top + w.high_plane_offset + c * kHighBytes, r, quarter, limit);
        load_raw<kBits, kWhole, true>(b, low + w.codes_offset + at,
                                      low + w.high_plane_offset + c * kHighBytes, r, quarter, limit);
        unsigned short scale[kParts][2];
        int zero[kParts][2];
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            const int g = min(c * kParts + p, w.groups - 1) * kBlockRows + r;
            scale[p][0] = load_scale(top + 2 * g), scale[p][1] = load_scale(low + 2 * g);
            zero[p][0] = load_zero(top + w.zero_points_offset + g);
            zero[p][1] = load_zero(low + w.zero_points_offset + g);
        }
        if (first_chunk) wait_for_kernel_before();
        int inputs[8];
        load_inputs<kWhole>(inputs, codes + c * kChunk, quarter);
        int dots[kParts][4];
#pragma unroll
        for (int p = 0; p < kParts; ++p)
#pragma unroll
            for (int i = 0; i < 4; ++i) dots[p][i] = 0;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            unsigned a0, a1, a2, a3;
            step_words<kBits, kWhole>(a, quarter, s, a0, a2);
            step_words<kBits, kWhole>(b, quarter, s, a1, a3);
            multiply_accumulate(dots[s * kParts / 4], a0, a1, a2, a3, inputs[2 * s],
                                inputs[2 * s + 1]);
        }
        float term[kParts][4], factor[kParts][4];
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            const int g = min(c * kParts + p, w.groups - 1);
            const int2 side0 = x.side[(long long)token0 * x.group_stride + g];
            const int2 side1 = x.side[(long long)token1 * x.group_stride + g];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int2 side = i & 1 ? side1 : side0;
                term[p][i] = float(dots[p][i] - zero[p][i >> 1] * side.y);
                factor[p][i] = half_to_float(scale[p][i >> 1]) * __int_as_float(side.x);
            }
        }
        first_chunk = false;
        if (c > 0) wait_at_barrier(1 + warp, 64);
        float4 y = c > 0 ? carry[lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            if (c * kParts + p >= w.groups) break;
            y.x = fma(term[p][0], factor[p][0], y.x);
            y.y = fma(term[p][1], factor[p][1], y.y);
            y.z = fma(term[p][2], factor[p][2], y.z);
            y.w = fma(term[p][3], factor[p][3], y.w);
        }
        if (c + 1 < chunks) {
            carry[lane] = y;  // a lane meets its own alone
            arrive_at_barrier(1 + (c + 1) % kRowsWarps, 64);
            continue;
        }
        const float value[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = tile * kRowsOutputs + row + (i >> 1) * 8;
            const int t = quarter * 2 + (i & 1);
            if (n >= w.rows || t >= m) continue;
            float* const out = products.out[number] + (long long)t * w.rows + n;
            const float biased = w.bias == nullptr ? value[i] : value[i] + w.bias[n];
            *out = add ? *out + biased : biased;
        }
    }
    if (first_chunk) wait_for_kernel_before();  // fewer chunks than warps
}

}  // namespace awqe_cuda
