// Attention of few rows: native/ARITHMETIC.md, sections 7 and 8. Chunks of 64 positions do not
// depend on each other, so a CTA computes one (row, key-value head, chunk) for all its query heads,
// and a second kernel merges chunks in ascending order and quantises the result.
#pragma once

#include "prepare.cuh"

namespace awqe_cuda {

constexpr int kAttentionThreads = 256;

// Positions that a row sees.
struct Seen {
    int begin;
    int end;
    __device__ __forceinline__ Seen(int position, int window)
        : begin(window == 0 || window > position ? 0 : position + 1 - window), end(position + 1) {}
    __device__ __forceinline__ int chunks() const {
        return (end + kAttentionChunk - 1) / kAttentionChunk - begin / kAttentionChunk;
    }
};

// A score as the model changes it: first its cap, then what it falls with the distance.
__device__ __forceinline__ float changed_score(const Heads& a, int head, float score,
                                               int distance) {
    if (a.score_cap != 0.0f) score = soft_cap(score, a.score_cap);
    return a.slopes == nullptr ? score : fma(-a.slopes[head], float(distance), score);
}

// Dot of sixteen lanes by four neighbouring threads, a quarter of the lanes each; all of them get
// it. query: float, key: half, both padded with zeros to d16 numbers and 16-byte aligned.
__device__ __forceinline__ float dot_by_four(const float* query, const unsigned short* key,
                                             int d16) {
    const int part = (threadIdx.x & 3) * 4;
    float lane[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int k = part; k < d16; k += kLanes) {
        const float4 q = *reinterpret_cast<const float4*>(query + k);
        const uint2 packed = *reinterpret_cast<const uint2*>(key + k);
        lane[0] = fma(q.x, half_to_float((unsigned short)packed.x), lane[0]);
        lane[1] = fma(q.y, half_to_float((unsigned short)(packed.x >> 16)), lane[1]);
        lane[2] = fma(q.z, half_to_float((unsigned short)packed.y), lane[2]);
        lane[3] = fma(q.w, half_to_float((unsigned short)(packed.y >> 16)), lane[3]);
    }
    // Lane i with i + 8, which lies two threads on; with i + 4, the next thread; then within.
#pragma unroll
    for (int j = 0; j < 4; ++j) lane[j] = lane[j] + __shfl_xor_sync(~0u, lane[j], 2);
#pragma unroll
    for (int j = 0; j < 4; ++j) lane[j] = lane[j] + __shfl_xor_sync(~0u, lane[j], 1);
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

// Of `n` heads from `first_head` on: what every chunk multiplies the chunks before it with, what it
// multiplies itself with, its weight. Running maxima are maxima of a beginning, so every factor can
// be had at once. factors: [n, 3, chunks].
__device__ __forceinline__ void merge_factors(const Partials& partials, int t, int heads,
                                              int first_head, int n, int chunks, float* factors) {
    for (int i = threadIdx.x; i < n * chunks; i += blockDim.x) {
        const int j = i / chunks;
        const int c = i % chunks;
        const long long at = ((long long)t * heads + first_head + j) * partials.chunks + c;
        float* const to = factors + j * 3 * chunks;
        to[chunks + c] = __ldcg(partials.largest + at);
        to[2 * chunks + c] = __ldcg(partials.weight + at);
    }
    __syncthreads();
    // A warp per head, so that every maximum is read before one is replaced by its factor.
    for (int j = threadIdx.x / 32; j < n; j += blockDim.x / 32) {
        float* const to = factors + j * 3 * chunks;
        float before = to[chunks];  // the largest of all chunks in front of these 32
        for (int c0 = 0; c0 < chunks; c0 += 32) {
            const int lane = threadIdx.x & 31;
            const int c = c0 + lane;
            const float own = c < chunks ? to[chunks + c] : before;
            float largest = fmaxf(own, before);
            for (int width = 1; width < 32; width *= 2) {
                const float other = __shfl_up_sync(~0u, largest, width);
                if (lane >= width) largest = fmaxf(largest, other);
            }
            const float earlier = __shfl_up_sync(~0u, largest, 1);
            const float previous = lane == 0 ? before : earlier;
            if (c < chunks) {
                to[c] = exponential(previous - largest);
                to[chunks + c] = exponential(own - largest);
            }
            before = __shfl_sync(~0u, largest, 31);
        }
    }
}

// Dimension k of a head, merged in ascending order of chunks. `head`: row * heads + head.
__device__ __forceinline__ float merged_number(const Partials& partials, long long head, int k,
                                               int d, int chunks, const float* factors) {
    const float* const values = partials.values + head * partials.chunks * d + k;
    float sum = __ldcg(values);
    float weight = factors[2 * chunks];
#pragma unroll 4
    for (int c = 1; c < chunks; ++c) {
        const float before = factors[c];
        const float own = factors[chunks + c];
        weight = fma(weight, before, factors[2 * chunks + c] * own);
        sum = fma(sum, before, __ldcg(values + (long long)c * d) * own);
    }
    return __fdiv_rn(sum, weight);
}

// The same for 32 neighbouring dimensions of one head and at most 32 chunks, by one warp: a lane
// has one chunk's factors and one dimension, so that all it reads is on its way at once.
__device__ __forceinline__ float merged_by_warp(const Partials& partials, long long head, int k,
                                                int d, int chunks) {
    constexpr int kAhead = 12;
    const int lane = threadIdx.x & 31;
    const long long first = head * partials.chunks;
    const float* const values = partials.values + first * d + k;
    float ahead[kAhead];
#pragma unroll
    for (int c = 0; c < kAhead; ++c) ahead[c] = c < chunks ? __ldcg(values + c * d) : 0.0f;
    const long long at = first + min(lane, chunks - 1);
    const float of_chunk = __ldcg(partials.largest + at);
    const float weight_of_chunk = __ldcg(partials.weight + at);
    float largest = of_chunk;
    for (int width = 1; width < 32; width *= 2) {
        const float other = __shfl_up_sync(~0u, largest, width);
        if (lane >= width) largest = fmaxf(largest, other);
    }
    const float earlier = __shfl_up_sync(~0u, largest, 1);
    const float before = exponential((lane == 0 ? of_chunk : earlier) - largest);
    const float own = exponential(of_chunk - largest);
    const float own_weight = weight_of_chunk * own;
    float weight = __shfl_sync(~0u, weight_of_chunk, 0);
    float sum = ahead[0];
    const auto merge = [&](int c, float value) {
        const float by = __shfl_sync(~0u, before, c);
        weight = fma(weight, by, __shfl_sync(~0u, own_weight, c));
        sum = fma(sum, by, value * __shfl_sync(~0u, own, c));
    };
#pragma unroll
    for (int c = 1; c < kAhead; ++c)
        if (c < chunks) merge(c, ahead[c]);
#pragma unroll 4
    for (int c = kAhead; c < chunks; ++c) merge(c, __ldcg(values + (long long)c * d));
    return __fdiv_rn(sum, weight);
}

// A key or a value of one head as the cache keeps it, by one warp: halves or codes as halves, with
// their scale, in shared memory, and where `to` is not NULL in the cache itself.
template <bool kInt8>
__device__ __forceinline__ void keep_head(const float* x, int d, unsigned short* halves,
                                          float* scale, unsigned char* to, float* scale_to) {
    const int lane = threadIdx.x & 31;
    if (to != nullptr) store_head(x, d, kInt8, to, scale_to);
    if (!kInt8) {
        for (int i = lane; i < d; i += 32) halves[i] = float_to_half(x[i]);
        return;
    }
    int largest = 0;
    for (int i = lane; i < d; i += 32) largest = max(largest, magnitude_bits(x[i]));
    largest = largest_of_warp(largest);
    const float inverse = inverse_quantum(largest);
    for (int i = lane; i < d; i += 32)
        halves[i] = float_to_half(float((signed char)code_of(x[i], inverse)));
    if (lane == 0) *scale = quantum(largest);
}

// Shared memory: queries [n, d16] floats, scores [n, 64] floats, scales [2, 64] floats, the row's
// own key, value and angles [3, d16] floats, keys [64, d16 + 8] halves, values [64, d, rounded up
// to 8] halves.
//
// Grid (chunks, heads / n, rows): n query heads of one key-value head go together. `fresh`: where
// its key is not NULL, rows are of different sequences and come as the products gave them. Every
// position but a row's own was there before this step and is fetched in front of
// wait_for_kernel_before(); what prepare_heads() does otherwise, norm, rotation and cache, is done
// here, which saves a kernel.
//
// `arrivals`: unsigned [rows, heads / n], zero, or NULL. Given, the last CTA of a row and its heads
// merges all their chunks and quantises them, which saves a kernel; needs whole groups per n heads.
// kHead: the head's size, or 0 for any. A kernel runs for some microseconds, in which fetching its
// own instructions counts: known sizes make a third of them. kChanged: scores have a cap or slopes.
template <bool kUnits, int kHead, bool kInt8, bool kChanged>
__device__ __forceinline__ void attend_chunks(const Row* rows, const Heads& a, const float* query,
                                              const CacheShape& cache, int layer,
                                              const Partials& partials, unsigned* arrivals,
                                              const Activations& out, int n,
                                              const FreshRows& fresh) {
    AWQE_DYNAMIC_SHARED(unsigned char, shared_memory);
    __shared__ bool shared_last;
    const bool early = fresh.key != nullptr;
    let_next_kernel_start();
    if (!early) wait_for_kernel_before();
    const int t = blockIdx.z;
    const int first_head = blockIdx.y * n;
    const int h = first_head / (a.heads / a.kv_heads);
    const int slot = blockIdx.x;
    const int d = kHead != 0 ? kHead : a.head_size;
    const Row row = rows[t];
    const Seen seen(row.position, a.window);
    const int chunks = seen.chunks();
    if (slot >= chunks) {
        if (early) wait_for_kernel_before();
        return;
    }
    const int chunk = seen.begin / kAttentionChunk + slot;
    const int begin = max(seen.begin, chunk * kAttentionChunk);
    const int end = min(seen.end, (chunk + 1) * kAttentionChunk);
    const int count = end - begin;

    const int d16 = (d + kLanes - 1) / kLanes * kLanes;
    const int key_stride = d16 + 8;  // halves; an odd number of 16-byte pieces
    float* const queries = reinterpret_cast<float*>(shared_memory);
    float* const scores = queries + n * d16;
    float* const key_scales = scores + n * kAttentionChunk;
    float* const value_scales = key_scales + kAttentionChunk;
    float* const own = value_scales + kAttentionChunk;
    unsigned short* const keys = reinterpret_cast<unsigned short*>(own + 3 * d16);
    unsigned short* const values = keys + kAttentionChunk * key_stride;

    // Everything to shared memory, values behind the keys; int8 codes become halves, exactly. First
    // what was there before this step, then the row's own position, if this chunk has it.
    const bool has_own = early && end == seen.end;
    const int old = has_own ? count - 1 : count;
    const unsigned char* const base =
        row.cache + chunk * cache.chunk_bytes + layer * cache.layer_bytes;
    const int first = h * kAttentionChunk + begin % kAttentionChunk;
    if (!kInt8 && d % 8 == 0) {
        const unsigned short* const k16 = reinterpret_cast<const unsigned short*>(base) + first * d;
        const unsigned short* const v16 =
            reinterpret_cast<const unsigned short*>(base + cache.values_offset) + first * d;
        const int pieces = d / 8;
        for (int i = threadIdx.x; i < old * pieces; i += kAttentionThreads)
            copy_async16(keys + i / pieces * key_stride + i % pieces * 8, k16 + i * 8);
        for (int i = threadIdx.x; i < old * pieces; i += kAttentionThreads)
            copy_async16(values + i * 8, v16 + i * 8);
        for (int i = threadIdx.x; i < count; i += kAttentionThreads)
            key_scales[i] = value_scales[i] = 1.0f;
    } else {
        if (kInt8) {
            const signed char* const k8 = reinterpret_cast<const signed char*>(base) + first * d;
            const signed char* const v8 = k8 + cache.values_offset;
            for (int i = threadIdx.x; i < old * d; i += kAttentionThreads) {
                keys[i / d * key_stride + i % d] = float_to_half(float(k8[i]));
                values[i] = float_to_half(float(v8[i]));
            }
        } else {
            const unsigned short* const k16 =
                reinterpret_cast<const unsigned short*>(base) + first * d;
            const unsigned short* const v16 =
                reinterpret_cast<const unsigned short*>(base + cache.values_offset) + first * d;
            for (int i = threadIdx.x; i < old * d; i += kAttentionThreads) {
                keys[i / d * key_stride + i % d] = k16[i];
                values[i] = v16[i];
            }
        }
        const float* const ks = reinterpret_cast<const float*>(base + cache.key_scales_offset);
        const float* const vs = reinterpret_cast<const float*>(base + cache.value_scales_offset);
        for (int i = threadIdx.x; i < (kInt8 ? old : count); i += kAttentionThreads) {
            key_scales[i] = kInt8 ? ks[first + i] : 1.0f;
            value_scales[i] = kInt8 ? vs[first + i] : 1.0f;
        }
    }
    commit_copies();
    if (early) wait_for_kernel_before();
    // Queries, and of fresh rows the angles and the own key and value: three fetches side by side.
    const auto query_at = [&](int i) {
        const int k = i % d16;
        return k < d ? query[((long long)t * a.heads + first_head + i / d16) * d + k] : 0.0f;
    };
    const bool turns = early && a.angle_stride != 0;
    float* const angles = own + 2 * d16;  // cosines, then sines
    const auto angle_at = [&](int i) {
        const float* const from = i < d / 2 ? fresh.cosines : fresh.sines - d / 2;
        return from[(long long)t * a.angle_stride + i];
    };
    const auto own_at = [&](int i) {
        const float* const from = i < d ? fresh.key : fresh.value;
        return from[((long long)t * a.kv_heads + h) * d + (i < d ? i : i - d)];
    };
    const int angle_count = turns ? d / 2 * 2 : 0;
    const int own_count = has_own ? 2 * d : 0;
    for (int i = threadIdx.x; i < max(n * d16, max(angle_count, own_count));
         i += kAttentionThreads) {
        const float q = i < n * d16 ? query_at(i) : 0.0f;
        const float angle = i < angle_count ? angle_at(i) : 0.0f;
        const float fresh_number = i < own_count ? own_at(i) : 0.0f;
        if (i < n * d16) queries[i] = q;
        if (i < angle_count) angles[i] = angle;
        if (i < own_count) own[i < d ? i : d16 + i - d] = fresh_number;
    }
    for (int i = threadIdx.x; i < count * (d16 - d); i += kAttentionThreads)
        keys[i / (d16 - d) * key_stride + d + i % (d16 - d)] = 0;
    if (early) {
        __syncthreads();
        const float* const cosine = turns ? angles : nullptr;
        const float* const sine = angles + d / 2;
        // The first CTA of a key-value head's puts it into the cache.
        const bool stores = first_head % (a.heads / a.kv_heads) == 0;
        unsigned char* const to = row.cache + chunk * cache.chunk_bytes + layer * cache.layer_bytes;
        const int number = h * kAttentionChunk + row.position % kAttentionChunk;
        const long long bytes = (long long)number * d * (kInt8 ? 1 : 2);
        for (int j = threadIdx.x / 32; j < n + 2; j += kAttentionThreads / 32) {
            if (j < n) {
                turn_head(queries + j * d16, a, &a.query_norm, (first_head + j) * a.norm_stride,
                          cosine, sine);
            } else if (has_own && j == n) {
                turn_head(own, a, &a.key_norm, h * a.norm_stride, cosine, sine);
                keep_head<kInt8>(own, d, keys + old * key_stride, key_scales + old,
                                 stores ? to + bytes : nullptr,
                                 reinterpret_cast<float*>(to + cache.key_scales_offset) + number);
            } else if (has_own) {
                turn_head(own + d16, a, nullptr, 0, nullptr, nullptr);
                keep_head<kInt8>(own + d16, d, values + old * d, value_scales + old,
                                 stores ? to + cache.values_offset + bytes : nullptr,
                                 reinterpret_cast<float*>(to + cache.value_scales_offset) + number);
            }
        }
    }
    wait_for_copies<0>();
    __syncthreads();

    const float root = __fdiv_rn(1.0f, __fsqrt_rn(float(d)));
    for (int i = threadIdx.x / 4; i < n * kAttentionChunk; i += kAttentionThreads / 4) {
        const int p = i % kAttentionChunk;
        const int visible = min(p, count - 1);  // all threads of a warp go through the shuffles
        const float dot =
            dot_by_four(queries + i / kAttentionChunk * d16, keys + visible * key_stride, d16);
        if ((threadIdx.x & 3) == 0 && p < count) {
            const float score = dot * key_scales[p] * root;
            scores[i] = kChanged ? changed_score(a, first_head + i / kAttentionChunk, score,
                                                 row.position - begin - p)
                                 : score;
        }
    }
    __syncthreads();

    // A warp per query: largest score, exponentials, their sum over lanes of positions.
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x & 31;
    const int shift = begin % kAttentionChunk;  // position of scores[0] in its chunk
    for (int j = warp; j < n; j += kAttentionThreads / 32) {
        float* const s = scores + j * kAttentionChunk;
        float largest = lane < count ? s[lane] : s[0];
        if (lane + 32 < count) largest = fmaxf(largest, s[lane + 32]);
        for (int width = 16; width > 0; width /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, width));
        for (int p = lane; p < count; p += 32) s[p] = exponential(s[p] - largest);
        __syncwarp();
        float sum = 0.0f;
        for (int p = lane & 15; p < kAttentionChunk; p += kLanes)
            if (p >= shift && p - shift < count) sum = sum + s[p - shift];
        sum = tree_of_lanes(sum);
        __syncwarp();
        for (int p = lane; p < count; p += 32) s[p] = s[p] * value_scales[p];
        if (lane == 0) {
            const long long at = ((long long)t * a.heads + first_head + j) * partials.chunks + slot;
            partials.largest[at] = largest;
            partials.weight[at] = sum;
        }
    }
    __syncthreads();

    // A thread per (query, dimension), positions in order.
    for (int i = threadIdx.x; i < n * d; i += kAttentionThreads) {
        const int j = i / d;
        const int k = i % d;
        const float* const e = scores + j * kAttentionChunk;
        float sum = 0.0f;
#pragma unroll 16
        for (int p = 0; p < count; ++p) sum = fma(e[p], half_to_float(values[p * d + k]), sum);
        const long long at = ((long long)t * a.heads + first_head + j) * partials.chunks + slot;
        partials.values[at * d + k] = sum;
    }
    if (arrivals == nullptr) return;

    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* const counter = arrivals + t * gridDim.y + blockIdx.y;
        const unsigned before = count_arrival(counter);
        shared_last = before + 1 == unsigned(chunks);
        if (shared_last) *counter = 0;
    }
    __syncthreads();
    if (!shared_last) return;
    float* const factors = queries;                        // [n, 3, chunks]
    float* const merged = reinterpret_cast<float*>(keys);  // [n, d]
    const long long head_row = (long long)t * a.heads + first_head;
    if (chunks <= 32 && d % 32 == 0) {
        for (int i = threadIdx.x; i < n * d; i += kAttentionThreads)
            merged[i] = merged_by_warp(partials, head_row + i / d, i % d, d, chunks);
    } else {
        merge_factors(partials, t, a.heads, first_head, n, chunks, factors);
        __syncthreads();
        for (int i = threadIdx.x; i < n * d; i += kAttentionThreads)
            merged[i] = merged_number(partials, head_row + i / d, i % d, d, chunks,
                                      factors + i / d * 3 * chunks);
    }
    __syncthreads();
    const int groups = n * d / out.group_size;
    for (int g = warp; g < groups; g += kAttentionThreads / 32) {
        quantize_group<kUnits>(out, t, blockIdx.y * groups + g,
                               [&](int i) { return merged[i - first_head * d]; });
    }
}

// One of 128 numbers of a row, merged from its chunks; 0 behind the row's `width` numbers. A CTA of
// 128 threads per 128 numbers; shared memory: per head that these touch, [3, chunks] floats.
__device__ __forceinline__ float merged_value(const Row* rows, const Heads& a,
                                              const Partials& partials, int width) {
    AWQE_DYNAMIC_SHARED(float, shared_factors);
    let_next_kernel_start();
    wait_for_kernel_before();
    const int t = blockIdx.y;
    const int d = a.head_size;
    const int first = blockIdx.x * kChunk;
    const int chunks = Seen(rows[t].position, a.window).chunks();
    const int first_head = first / d;
    const int last_head = min((first + kChunk - 1) / d, a.heads - 1);
    merge_factors(partials, t, a.heads, first_head, last_head - first_head + 1, chunks,
                  shared_factors);
    __syncthreads();
    const int i = first + threadIdx.x;
    if (i >= width) return 0.0f;
    const int head = i / d;
    return merged_number(partials, (long long)t * a.heads + head, i % d, d, chunks,
                         shared_factors + (head - first_head) * 3 * chunks);
}

// Merges a row's chunks and quantises them. Grid (code_stride / 128, m), 128 threads.
template <bool kUnits>
__device__ __forceinline__ void merge_rows(const Row* rows, const Heads& a,
                                           const Partials& partials, const Activations& out) {
    __shared__ float shared_out[kChunk];
    const int first = blockIdx.x * kChunk;
    shared_out[threadIdx.x] = merged_value(rows, a, partials, out.k);
    __syncthreads();
    const int parts = kChunk / out.group_size;
    if (threadIdx.x / 32 < parts) {
        quantize_group<kUnits>(out, blockIdx.y, blockIdx.x * parts + threadIdx.x / 32,
                               [&](int k) { return shared_out[k - first]; });
    }
}

}  // namespace awqe_cuda
