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

// Quantises one group by one warp, of which every lane has four neighbouring inputs, or zeros where
// the row or the group has ended. kUnits: the row is the only one, and lies in units.
template <bool kUnits>
__device__ __forceinline__ void quantize_numbers(const Activations& out, int row, int group,
                                                 const float (&x)[4]) {
    const int lane = threadIdx.x & 31;
    const int first = group * out.group_size + lane * 4;
    const bool mine = lane * 4 < out.group_size;
    int largest = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) largest = max(largest, magnitude_bits(x[j]));
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

// The same of `value(i)`, input i of the row for i < k. All lanes call it.
template <bool kUnits, class Value>
__device__ __forceinline__ void quantize_group(const Activations& out, int row, int group,
                                               const Value& value) {
    const int first = group * out.group_size + (threadIdx.x & 31) * 4;
    const bool mine = (threadIdx.x & 31) * 4 < out.group_size;
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = mine && first + j < out.k ? value(first + j) : 0.0f;
    quantize_numbers<kUnits>(out, row, group, x);
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

// What a norm makes of one number.
template <bool kLayer>
__device__ __forceinline__ float normed(float x, float mean, float inverse, float weight,
                                        const float* bias) {
    if (!kLayer) return x * inverse * weight;
    const float d = (x - mean) * inverse;
    return bias == nullptr ? d * weight : fma(d, weight, *bias);
}

// Mean and factor of a row in shared memory, by one warp, a lane of the contract per thread of its
// first half; the second half does the same. The chain of k / 16 additions is what the contract
// asks for and what a norm takes. x: float [k, rounded up to 16 with zeros].
template <bool kLayer>
__device__ __forceinline__ void row_statistics(const float* x, int k, float epsilon, float* mean,
                                               float* inverse) {
    const int lane = threadIdx.x & 15;
    const int padded = (k + kLanes - 1) / kLanes * kLanes;
    *mean = 0.0f;
    float sum = 0.0f;
    if (kLayer) {
#pragma unroll 8
        for (int i = lane; i < padded; i += kLanes) sum = sum + x[i];
        *mean = __fdiv_rn(tree_of_lanes(sum), float(k));
        sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < k; i += kLanes) {
            const float d = x[i] - *mean;
            sum = fma(d, d, sum);
        }
    } else {
#pragma unroll 8
        for (int i = lane; i < padded; i += kLanes) sum = fma(x[i], x[i], sum);
    }
    *inverse = inverse_root(__fdiv_rn(tree_of_lanes(sum), float(k)) + epsilon);
}

// A row to shared memory, with zeros up to a multiple of 16.
template <class Value>
__device__ __forceinline__ void fill_row(float* to, int k, const Value& value) {
    const int padded = (k + kLanes - 1) / kLanes * kLanes;
    for (int i = threadIdx.x; i < padded; i += blockDim.x) to[i] = i < k ? value(i) : 0.0f;
}

// Norm of one row, quantised. x: float [m, k]; a CTA per row. Shared memory: the row.
template <bool kUnits, bool kLayer>
__device__ __forceinline__ void norm_rows(const float* x, const NormWeights& norm,
                                          const Activations& out) {
    AWQE_DYNAMIC_SHARED(float, shared_row);  // [k, rounded up to 16]
    __shared__ float shared_mean;
    __shared__ float shared_inverse;
    let_next_kernel_start();
    wait_for_kernel_before();
    const int k = out.k;
    const int row = blockIdx.x;
    const float* const from = x + (long long)row * k;
    if (k % kLanes == 0) {
        const float4* const pieces = reinterpret_cast<const float4*>(from);
        for (int i = threadIdx.x; i < k / 4; i += blockDim.x)
            reinterpret_cast<float4*>(shared_row)[i] = pieces[i];
    } else {
        fill_row(shared_row, k, [&](int i) { return from[i]; });
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float mean, inverse;
        row_statistics<kLayer>(shared_row, k, norm.epsilon, &mean, &inverse);
        if (threadIdx.x == 0) shared_mean = mean, shared_inverse = inverse;
    }
    // Meanwhile the other warps fetch their weights.
    const int group = threadIdx.x / 32;
    const int first = group * out.group_size + (threadIdx.x & 31) * 4;
    float own[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) own[j] = first + j < k ? norm.weight[first + j] : 0.0f;
    __syncthreads();
    const float mean = shared_mean;
    const float inverse = shared_inverse;
    const auto value = [&](int i, float weight) {
        return normed<kLayer>(shared_row[i], mean, inverse, weight,
                              kLayer && norm.bias != nullptr ? norm.bias + i : nullptr);
    };
    if (group < out.group_stride) {
        quantize_group<kUnits>(out, row, group,
                               [&](int i) { return value(i, own[(i - first) & 3]); });
    }
    for (int g = group + blockDim.x / 32; g < out.group_stride; g += blockDim.x / 32)
        quantize_group<kUnits>(out, row, g, [&](int i) { return value(i, norm.weight[i]); });
}

// How a row takes up what a branch gave.
constexpr int kNormInPlace = 0;  // stream = norm(stream); there is no branch
constexpr int kAddNormed = 1;    // stream = stream + norm(branch)
constexpr int kNormSum = 2;      // stream = norm(stream + branch)

// Norm of whole rows in floats: [m, k]; a CTA per row. Shared memory: the row.
template <bool kLayer>
__device__ __forceinline__ void norm_stream(float* stream, const float* branch,
                                            const NormWeights& norm, int k, int how) {
    AWQE_DYNAMIC_SHARED(float, shared_sums);  // [k, rounded up to 16]
    let_next_kernel_start();
    wait_for_kernel_before();
    float* const own = stream + (long long)blockIdx.x * k;
    const float* const given = branch + (long long)blockIdx.x * k;
    fill_row(shared_sums, k, [&](int i) {
        return how == kNormInPlace ? own[i] : how == kAddNormed ? given[i] : own[i] + given[i];
    });
    __syncthreads();
    // Every warp for itself: the sums take as long as one warp takes.
    float mean, inverse;
    row_statistics<kLayer>(shared_sums, k, norm.epsilon, &mean, &inverse);
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        const float y = normed<kLayer>(shared_sums[i], mean, inverse, norm.weight[i],
                                       norm.bias != nullptr ? norm.bias + i : nullptr);
        own[i] = how == kAddNormed ? own[i] + y : y;
    }
}

}  // namespace awqe_cuda
