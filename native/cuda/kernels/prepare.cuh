// The first and the small steps of a forward pass: embedding and angles; norm, rotation and cache
// of one layer's queries, keys and values; the gated activation. native/ARITHMETIC.md, sections 3
// to 6 and 8.
#pragma once

#include "quantize.cuh"

namespace awqe_cuda {

__device__ __forceinline__ int code_at(const Matrix& w, const unsigned char* block, int r, int k) {
    const unsigned char* const codes = block + w.codes_offset;
    if (w.bits == 8) return codes[k / 32 * 128 + r * 32 + k % 32];
    if (w.bits == 4) {
        const int byte = codes[k / 32 * 64 + r * 16 + k % 16];
        return k % 32 < 16 ? byte & 15 : byte >> 4;
    }
    const int low = (codes[k / 64 * 64 + r * 16 + k % 16] >> (k % 64 / 16 * 2)) & 3;
    if (w.bits == 2) return low;
    const int byte = block[w.high_plane_offset + k / 64 * 32 + r * 8 + k % 8];
    const int field = k % 64 / 16;
    return low | ((byte >> (k % 16 < 8 ? field : 4 + field)) & 1) << 2;
}

// residual[t] = the token's row of the embedding; angles of its position. A CTA per row.
__device__ __forceinline__ void embed_row(const Row* rows, const Matrix& table,
                                          const float* inverse_frequencies, int half_head,
                                          float* residual, float* cosines, float* sines) {
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
    for (int i = threadIdx.x; i < half_head; i += blockDim.x) {
        float sine, cosine;
        sine_cosine(float(row.position) * inverse_frequencies[i], &sine, &cosine);
        cosines[(long long)t * half_head + i] = cosine;
        sines[(long long)t * half_head + i] = sine;
    }
}

constexpr int kMaxHeadSize = 256;  // FORMAT.md, section 1
constexpr int kPrepareWarps = 4;

// Norm (if any) and rotation of one head, by one warp, in shared memory.
__device__ __forceinline__ void turn_head(float* x, const Heads& a, const float* norm_weight,
                                          const float* cosines, const float* sines) {
    const int lane = threadIdx.x & 31;
    const int d = a.head_size;
    if (norm_weight != nullptr) {
        float sum = 0.0f;
        for (int i = lane & 15; i < d; i += kLanes) sum = fma(x[i], x[i], sum);
        sum = tree_of_lanes(sum);
        const float mean = __fdiv_rn(sum, float(d));
        const float inverse = inverse_root(mean + a.epsilon);
        for (int i = lane; i < d; i += 32) x[i] = x[i] * inverse * norm_weight[i];
        __syncwarp();
    }
    for (int i = lane; i < d / 2; i += 32) {
        const float first = x[i];
        const float second = x[i + d / 2];
        x[i] = fma(-second, sines[i], first * cosines[i]);
        x[i + d / 2] = fma(first, sines[i], second * cosines[i]);
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

// Queries in place, key and value into the cache. Grid (ceil((heads + 2 kv_heads) / warps), m).
__device__ __forceinline__ void prepare_heads(const Row* rows, const Heads& a, float* query,
                                              const float* key, const float* value,
                                              const float* query_norm, const float* key_norm,
                                              const float* cosines, const float* sines,
                                              const CacheShape& cache, int layer) {
    __shared__ float shared_head[kPrepareWarps][kMaxHeadSize];
    let_next_kernel_start();
    wait_for_kernel_before();
    const int lane = threadIdx.x & 31;
    const int d = a.head_size;
    const int t = blockIdx.y;
    int head = blockIdx.x * kPrepareWarps + threadIdx.x / 32;
    if (head >= a.heads + 2 * a.kv_heads) return;
    float* const x = shared_head[threadIdx.x / 32];
    const float* const cosine = cosines + (long long)t * (d / 2);
    const float* const sine = sines + (long long)t * (d / 2);
    if (head < a.heads) {
        float* const q = query + ((long long)t * a.heads + head) * d;
        for (int i = lane; i < d; i += 32) x[i] = q[i];
        __syncwarp();
        turn_head(x, a, query_norm, cosine, sine);
        for (int i = lane; i < d; i += 32) q[i] = x[i];
        return;
    }
    head -= a.heads;
    const bool is_key = head < a.kv_heads;
    if (!is_key) head -= a.kv_heads;
    const float* const from = (is_key ? key : value) + ((long long)t * a.kv_heads + head) * d;
    for (int i = lane; i < d; i += 32) x[i] = from[i];
    __syncwarp();
    if (is_key) turn_head(x, a, key_norm, cosine, sine);
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

// Quantised silu(gate) * up. gate, up: float [m, k]; grid (groups / warps, m).
template <bool kUnits>
__device__ __forceinline__ void gate_rows(const float* gate, const float* up,
                                          const Activations& out) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int row = blockIdx.y;
    const int group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= out.group_stride) return;
    const long long at = (long long)row * out.k;
    quantize_group<kUnits>(out, row, group, [&](int i) {
        const float g = gate[at + i];
        return __fdiv_rn(g, 1.0f + exponential(-g)) * up[at + i];
    });
}

}  // namespace awqe_cuda
