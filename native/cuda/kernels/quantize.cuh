// Norm and quantisation of rows: native/ARITHMETIC.md, sections 3 and 4. A CTA owns one row (norm)
// or some groups of one (no norm).
#pragma once

#include "device.h"

namespace awqe_cuda {

// Where code i of a single row lies; see Activations.
__device__ __forceinline__ int unit_offset(int i) {
    const int chunk = i / kChunk;
    return chunk / kUnitChunks * (kUnitChunks * kChunk) + i % kChunk / 16 * (kUnitChunks * 16) +
           chunk % kUnitChunks * 16 + i % 16;
}

// Quantises one group by one warp. `value(i)` gives input i of the row for i < k. kUnits: the row
// is the only one, and lies in units. All lanes call it; 4 neighbouring inputs belong to a lane.
template <bool kUnits, class Value>
__device__ __forceinline__ void quantize_group(const Activations& out, int row, int group,
                                               const Value& value) {
    const int lane = threadIdx.x & 31;
    const int g = out.group_size;
    const int first = group * g + lane * 4;
    const bool mine = lane * 4 < g;
    float x[4];
    int largest = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        x[j] = mine && first + j < out.k ? value(first + j) : 0.0f;
        largest = max(largest, magnitude_bits(x[j]));
    }
    largest = largest_of_warp(largest);
    const float inverse = inverse_quantum(largest);
    int sum = 0;
    unsigned packed = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int code = code_of(x[j], inverse);
        sum += code;
        packed |= (unsigned(code) & 0xff) << (8 * j);
    }
    for (int width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(~0u, sum, width);
    if (mine) {
        const long long at = kUnits ? unit_offset(first) : (long long)row * out.code_stride + first;
        *reinterpret_cast<unsigned*>(out.codes + at) = packed;
    }
    if (lane == 0) {
        out.side[(long long)row * out.group_stride + group] =
            make_int2(__float_as_int(quantum(largest)), sum);
    }
}

// A row without a norm, a warp per group. x: float [m, k]; grid (groups / warps, m).
template <bool kUnits>
__device__ __forceinline__ void quantize_rows(const float* x, const Activations& out) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int row = blockIdx.y;
    const int group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= out.group_stride) return;  // groups of padding become zeros
    const float* const from = x + (long long)row * out.k;
    quantize_group<kUnits>(out, row, group, [&](int i) { return from[i]; });
}

// RMS norm of one row, quantised. x: float [m, k], weight: float [k]; a CTA per row. Shared memory:
// the row. The chain of k / 16 additions is what the contract asks for and what the kernel takes:
// a thread of the first half-warp is a lane.
template <bool kUnits>
__device__ __forceinline__ void norm_rows(const float* x, const float* weight, float epsilon,
                                          const Activations& out) {
    extern __shared__ __align__(16) float shared_row[];  // [k, rounded up to 16]
    __shared__ float shared_inverse;
    let_next_kernel_start();
    wait_for_kernel_before();
    const int k = out.k;
    const int row = blockIdx.x;
    const float* const from = x + (long long)row * k;
    const int padded = (k + kLanes - 1) / kLanes * kLanes;
    if (k % 4 == 0) {
        const float4* const pieces = reinterpret_cast<const float4*>(from);
        for (int i = threadIdx.x; i < padded / 4; i += blockDim.x) {
            reinterpret_cast<float4*>(shared_row)[i] =
                i < k / 4 ? pieces[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    } else {
        for (int i = threadIdx.x; i < padded; i += blockDim.x)
            shared_row[i] = i < k ? from[i] : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x & 15;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < padded; i += kLanes) sum = fma(shared_row[i], shared_row[i], sum);
        sum = tree_of_lanes(sum);
        const float mean = __fdiv_rn(sum, float(k));
        if (threadIdx.x == 0) shared_inverse = inverse_root(mean + epsilon);
    }
    // Meanwhile the other warps fetch their weights.
    const int group = threadIdx.x / 32;
    const int first = group * out.group_size + (threadIdx.x & 31) * 4;
    float own[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) own[j] = first + j < k ? weight[first + j] : 0.0f;
    __syncthreads();
    const float inverse = shared_inverse;
    if (group < out.group_stride) {
        quantize_group<kUnits>(
            out, row, group, [&](int i) { return shared_row[i] * inverse * own[(i - first) & 3]; });
    }
    for (int g = group + blockDim.x / 32; g < out.group_stride; g += blockDim.x / 32) {
        quantize_group<kUnits>(out, row, g,
                               [&](int i) { return shared_row[i] * inverse * weight[i]; });
    }
}

}  // namespace awqe_cuda
