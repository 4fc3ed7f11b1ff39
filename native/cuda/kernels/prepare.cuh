// The first and the small steps of a forward pass: embedding and angles; norm, rotation and cache
// of one layer's queries, keys and values; the gated activation. native/ARITHMETIC.md, sections 3
// to 6 and 8.
#pragma once

#include "quantize.cuh"

namespace awqe_cuda {

__device__ __forceinline__ int code_at(const Matrix& w, const unsigned char* block, int r, int k) {
    const unsigned char* const codes = block + w.codes_offset;
    if (w.bits == 8) return codes[k / 32 * 128 + r * 32 + k % 32];
    const unsigned char* const high = block + w.high_plane_offset;
    const int field = k % 64 / 16;
    const auto two_bits = [&](const unsigned char* plane) {
        return (plane[k / 64 * 64 + r * 16 + k % 16] >> (field * 2)) & 3;
    };
    const auto one_bit = [&] {
        const int byte = high[k / 64 * 32 + r * 8 + k % 8];
        return (byte >> (k % 16 < 8 ? field : 4 + field)) & 1;
    };
    if (w.bits == 2) return two_bits(codes);
    if (w.bits == 3) return two_bits(codes) | one_bit() << 2;
    const int byte = codes[k / 32 * 64 + r * 16 + k % 16];
    const int low = k % 32 < 16 ? byte & 15 : byte >> 4;
    if (w.bits == 5) return low | one_bit() << 4;
    if (w.bits == 6) return low | two_bits(high) << 4;
    return low;
}

// residual[t] = the token's row of the embedding; `angles` angles of its position, those of all
// rotary tables. axes: NULL, or unsigned char [half], by which of a row's three numbers an angle of
// a head turns. A CTA per row.
__device__ __forceinline__ void embed_row(const Row* rows, const Matrix& table,
                                          const float* inverse_frequencies, int angles,
                                          const unsigned char* axes, int half, float* residual,
                                          float* cosines, float* sines) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int t = blockIdx.x;
    const Row row = rows[t];
    const unsigned char* const block =
        table.blocks + (long long)(row.token / kBlockRows) * table.block_bytes;
    const int r = row.token % kBlockRows;
    for (int k = threadIdx.x; k < table.columns; k += blockDim.x) {
        const int group = k / table.group_size;
        const int code =
            code_at(table, block, r, k) - block[table.zero_points_offset + group * kBlockRows + r];
        const unsigned short scale =
            *reinterpret_cast<const unsigned short*>(block + (group * kBlockRows + r) * 2);
        residual[(long long)t * table.columns + k] = float(code) * half_to_float(scale);
    }
    for (int i = threadIdx.x; i < angles; i += blockDim.x) {
        float sine, cosine;
        const int number = axes == nullptr ? row.position : row.turns[axes[i % half]];
        sine_cosine(float(number) * inverse_frequencies[i], &sine, &cosine);
        cosines[(long long)t * angles + i] = cosine;
        sines[(long long)t * angles + i] = sine;
    }
}

// residual[t] += row of the position, where positions are learned. A CTA per row.
__device__ __forceinline__ void add_position(const Row* rows, const float* positions, int width,
                                             float* residual) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const float* const learned = positions + (long long)rows[blockIdx.x].position * width;
    float* const own = residual + (long long)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) own[i] = own[i] + learned[i];
}

constexpr int kMaxHeadSize = 256;  // FORMAT.md, section 1
constexpr int kPrepareWarps = 4;

// Norm (if any), limit (if any) and rotation (if any) of one head, by one warp, in shared memory.
// norm: NULL, or the norm of all heads, of which this one's weights lie at `first`.
__device__ __forceinline__ void turn_head(float* x, const Heads& a, const NormWeights* norm,
                                          int first, const float* cosines, const float* sines) {
    const int lane = threadIdx.x & 31;
    const int d = a.head_size;
    if (norm != nullptr && norm->weight != nullptr) {
        const int padded = (d + kLanes - 1) / kLanes * kLanes;
        if (lane < padded - d) x[d + lane] = 0.0f;
        __syncwarp();
        const float* const weight = norm->weight + first;
        const float* const bias = norm->bias == nullptr ? nullptr : norm->bias + first;
        float mean, inverse;
        if (norm->layer) {
            row_statistics<true>(x, d, norm->epsilon, &mean, &inverse);
            __syncwarp();
            for (int i = lane; i < d; i += 32)
                x[i] = normed<true>(x[i], mean, inverse, weight[i],
                                    bias == nullptr ? nullptr : bias + i);
        } else {
            row_statistics<false>(x, d, norm->epsilon, &mean, &inverse);
            __syncwarp();
            for (int i = lane; i < d; i += 32)
                x[i] = normed<false>(x[i], mean, inverse, weight[i], nullptr);
        }
        __syncwarp();
    }
    if (a.limit != 0.0f) {
        for (int i = lane; i < d; i += 32) x[i] = limited(x[i], a.limit);
        __syncwarp();
    }
    for (int i = lane; cosines != nullptr && i < d / 2; i += 32) {
        const float first_half = x[i];
        const float second = x[i + d / 2];
        x[i] = fma(-second, sines[i], first_half * cosines[i]);
        x[i + d / 2] = fma(first_half, sines[i], second * cosines[i]);
    }
    __syncwarp();
}

// One key or value of one head, by one warp: to half, or to int8 as section 8 says.
__device__ __forceinline__ void store_head(const float* x, int d, bool int8, unsigned char* to,
                                           float* scale_to) {
    const int lane = threadIdx.x & 31;
    if (!int8) {
        unsigned short* const half = reinterpret_cast<unsigned short*>(to);
        for (int i = lane; i < d; i += 32) half[i] = float_to_half(x[i]);
        return;
    }
    int largest = 0;
    for (int i = lane; i < d; i += 32) largest = max(largest, magnitude_bits(x[i]));
    largest = largest_of_warp(largest);
    const float inverse = inverse_quantum(largest);
    for (int i = lane; i < d; i += 32) to[i] = (unsigned char)code_of(x[i], inverse);
    if (lane == 0) *scale_to = quantum(largest);
}

// Queries in place, key and value into the cache. cosines, sines: of the layer's table, rows
// angle_stride apart. Grid (ceil((heads + 2 kv_heads) / warps), m).
__device__ __forceinline__ void prepare_heads(const Row* rows, const Heads& a, float* query,
                                              const float* key, const float* value,
                                              const float* cosines, const float* sines,
                                              const CacheShape& cache, int layer) {
    __shared__ float shared_head[kPrepareWarps][kMaxHeadSize];  // a multiple of 16
    let_next_kernel_start();
    wait_for_kernel_before();
    const int lane = threadIdx.x & 31;
    const int d = a.head_size;
    const int t = blockIdx.y;
    int head = blockIdx.x * kPrepareWarps + threadIdx.x / 32;
    if (head >= a.heads + 2 * a.kv_heads) return;
    float* const x = shared_head[threadIdx.x / 32];
    const bool turns = a.angle_stride != 0;
    const float* const cosine = turns ? cosines + (long long)t * a.angle_stride : nullptr;
    const float* const sine = sines + (long long)t * a.angle_stride;
    if (head < a.heads) {
        float* const q = query + ((long long)t * a.heads + head) * d;
        for (int i = lane; i < d; i += 32) x[i] = q[i];
        __syncwarp();
        turn_head(x, a, &a.query_norm, head * a.norm_stride, cosine, sine);
        for (int i = lane; i < d; i += 32) q[i] = x[i];
        return;
    }
    head -= a.heads;
    const bool is_key = head < a.kv_heads;
    if (!is_key) head -= a.kv_heads;
    const float* const from = (is_key ? key : value) + ((long long)t * a.kv_heads + head) * d;
    for (int i = lane; i < d; i += 32) x[i] = from[i];
    __syncwarp();
    if (is_key) {
        turn_head(x, a, &a.key_norm, head * a.norm_stride, cosine, sine);
    } else {
        turn_head(x, a, nullptr, 0, nullptr, nullptr);
    }
    const Row row = rows[t];
    unsigned char* const base =
        row.cache + row.position / kAttentionChunk * cache.chunk_bytes + layer * cache.layer_bytes;
    const long long at = head * kAttentionChunk + row.position % kAttentionChunk;
    unsigned char* const numbers = base + (is_key ? 0 : cache.values_offset);
    float* const scales = reinterpret_cast<float*>(
        base + (is_key ? cache.key_scales_offset : cache.value_scales_offset));
    store_head(x, d, cache.int8 != 0, numbers + at * d * (cache.int8 ? 1 : 2), scales + at);
}

// Rows of a float array by their numbers: [count, width]. A CTA per row.
__device__ __forceinline__ void gather_row(const float* from, const unsigned* rows, int width,
                                           float* to) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const float* const source = from + (long long)rows[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        to[(long long)blockIdx.x * width + i] = source[i];
}

// Quantised act(x) * factor, or act(x) without one. x: float [m, k]; factor: float [m, k], rows
// factor_stride apart. Grid (groups / warps, m).
template <bool kUnits>
__device__ __forceinline__ void activate_rows(const float* x, const float* factor,
                                              int factor_stride, int activation,
                                              const Activations& out) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int row = blockIdx.y;
    const int group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= out.group_stride) return;
    const float* const from = x + (long long)row * out.k;
    const float* const by = factor + (long long)row * factor_stride;
    if (out.k % 4 == 0) {
        const int lane = threadIdx.x & 31;
        const int first = group * out.group_size + lane * 4;
        float4 numbers = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float4 factors = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        if (lane * 4 < out.group_size && first < out.k) {
            numbers = *reinterpret_cast<const float4*>(from + first);
            if (factor != nullptr) factors = *reinterpret_cast<const float4*>(by + first);
        }
        float y[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
        const float times[4] = {factors.x, factors.y, factors.z, factors.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            y[j] = activated(activation, y[j]);
            if (factor != nullptr) y[j] = y[j] * times[j];
        }
        quantize_numbers<kUnits>(out, row, group, y);
        return;
    }
    quantize_group<kUnits>(out, row, group, [&](int i) {
        const float y = activated(activation, from[i]);
        return factor == nullptr ? y : y * by[i];
    });
}

// stream += branch, and x = its cap: float [count] each.
__device__ __forceinline__ void add_floats(float* stream, const float* branch, int count) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) stream[i] = stream[i] + branch[i];
}
__device__ __forceinline__ void cap_floats(float* x, int count, float cap) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] = soft_cap(x[i], cap);
}

}  // namespace awqe_cuda
