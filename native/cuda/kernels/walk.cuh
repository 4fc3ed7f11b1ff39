// Packed matrices times one row, like gemv.cuh and with its bits, for GPUs on which a kernel may
// begin while the one before ends (sm_90). A CTA per multiprocessor walks a range of blocks of
// rows; every warp has a ring in shared memory with the weights of its next units on their way, the
// first ones while the kernel before still runs: weights depend on nothing. What the row goes
// through first, norm and quantisation, every CTA does for itself, which costs no kernel.
//
// All warps but the last compute terms of groups; the last one, the keeper, adds the terms of a
// batch of blocks in ascending order and stores, while the others are at the next batch.
#pragma once

#include "gemv.cuh"
#include "quantize.cuh"

namespace awqe_cuda {

constexpr int kWalkDepth = 4;       // units on their way, per warp
constexpr int kWalkEarly = 3;       // of them before the kernel before has ended
constexpr int kWalkMostWarps = 14;  // the keeper apart
constexpr int kWalkThreads = (kWalkMostWarps + 1) * 32;

// Quantises a row into shared memory, eight lanes per group and so four groups per warp at once.
// value4(i): inputs i ... i + 3. kParts: 128 / group size.
template <int kParts, class Value4>
__device__ __forceinline__ void quantize_row(signed char* codes, int2* side, int groups, int k,
                                             const Value4& value4) {
    constexpr int kVectors = 4 / kParts;  // of a lane
    constexpr int kGroup = kChunk / kParts;
    const int lane = threadIdx.x & 7;
    float4 x[kVectors], following[kVectors];
    const auto fetch = [&](float4(&to)[kVectors], int g) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            const int i = g * kGroup + (v * 8 + lane) * 4;
            to[v] = i < k ? value4(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    };
    fetch(following, threadIdx.x / 8);
    // All lanes of a warp go through the shuffles.
    for (int g0 = threadIdx.x / 32 * 4; g0 < groups; g0 += blockDim.x / 8) {
        const int g = g0 + threadIdx.x % 32 / 8;
        int largest = 0;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) x[v] = following[v];
        fetch(following, g + blockDim.x / 8);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            largest = max(largest, max(max(magnitude_bits(x[v].x), magnitude_bits(x[v].y)),
                                       max(magnitude_bits(x[v].z), magnitude_bits(x[v].w))));
        }
#pragma unroll
        for (int width = 4; width > 0; width /= 2)
            largest = max(largest, __shfl_xor_sync(~0u, largest, width));
        const float inverse = inverse_quantum(largest);
        int sum = 0;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            const int c[4] = {code_of(x[v].x, inverse), code_of(x[v].y, inverse),
                              code_of(x[v].z, inverse), code_of(x[v].w, inverse)};
            sum += (c[0] + c[1]) + (c[2] + c[3]);
            const int i = g * kGroup + (v * 8 + lane) * 4;
            if (g < groups)
                *reinterpret_cast<unsigned*>(codes + unit_offset(i)) =
                    unsigned(c[0] & 0xff) | unsigned(c[1] & 0xff) << 8 |
                    unsigned(c[2] & 0xff) << 16 | unsigned(c[3]) << 24;
        }
#pragma unroll
        for (int width = 4; width > 0; width /= 2) sum += __shfl_xor_sync(~0u, sum, width);
        if (lane == 0 && g < groups) side[g] = make_int2(__float_as_int(quantum(largest)), sum);
    }
}

// The sum of 16 chains over a row in shared memory, by one warp; loads run ahead of the chain.
template <class Step>
__device__ __forceinline__ float chains_of_row(const float* x, int padded, const Step& step) {
    constexpr int kAhead = 16;
    const int lane = threadIdx.x & 15;
    const int count = padded / kLanes;
    float sum = 0.0f;
    int i = 0;
    float now[kAhead];
    if (count >= kAhead) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) now[j] = x[j * kLanes + lane];
        for (; i + 2 * kAhead <= count; i += kAhead) {
            float next[kAhead];
#pragma unroll
            for (int j = 0; j < kAhead; ++j) next[j] = x[(i + kAhead + j) * kLanes + lane];
#pragma unroll
            for (int j = 0; j < kAhead; ++j) sum = step(sum, now[j]);
#pragma unroll
            for (int j = 0; j < kAhead; ++j) now[j] = next[j];
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) sum = step(sum, now[j]);
        i += kAhead;
    }
    for (; i < count; ++i) sum = step(sum, x[i * kLanes + lane]);
    return sum;
}

// Continues a sum like chain(); the next terms are on their way while some are added.
__device__ __forceinline__ float chain_ahead(const float2* terms, int count) {
    float sum = 0.0f;
    int g = 0;
    if (count >= 8) {
        float2 now[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) now[i] = terms[i * kBlockRows];
        for (; g + 16 <= count; g += 8) {
            float2 next[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) next[i] = terms[(g + 8 + i) * kBlockRows];
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = fma(now[i].x, now[i].y, sum);
#pragma unroll
            for (int i = 0; i < 8; ++i) now[i] = next[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fma(now[i].x, now[i].y, sum);
        g += 8;
    }
    for (; g < count; ++g) sum = fma(terms[g * kBlockRows].x, terms[g * kBlockRows].y, sum);
    return sum;
}

// A unit of a block in shared memory: codes as [load][lane][16], a high plane as [load][lane][8 or
// 16], scales and zero-points as in the block.
template <int kBits, int kParts>
struct WalkUnit {
    static constexpr int kLow = kLowBits<kBits>;
    static constexpr int kHigh = kBits - kLow;
    static constexpr int kHighAt = kLow * 512;
    static constexpr int kScalesAt = kHighAt + kHigh * 512;
    static constexpr int kZerosAt = kScalesAt + kParts * 64;
    static constexpr int kBytes = kZerosAt + kParts * 32;
};

// What a lane copies of one unit of any block, and how it reads it again: its own row's codes of
// its own chunk, and a share of the scales and zero-points, which lie together for a unit. Behind
// the row's last input may be anything: it meets activations of zero, or no chain takes it up.
template <int kBits, int kParts>
struct WalkPlace {
    using Unit = WalkUnit<kBits, kParts>;
    int codes, high, scales, zeros;  // bytes from a block's beginning
    int inputs;                      // that the file holds from the chunk's first on

    __device__ __forceinline__ WalkPlace(const Matrix& w, int unit) {
        const int lane = threadIdx.x & 31;
        const int chunk = unit * kUnitChunks + (lane >> 2);
        const int r = lane & 3;
        codes = w.codes_offset + chunk * (kChunk * kBlockRows * Unit::kLow / 8) + r * 16;
        high = w.high_plane_offset + chunk * (64 * Unit::kHigh) + r * (8 * Unit::kHigh);
        scales = unit * (kParts * 64);
        zeros = w.zero_points_offset + unit * (kParts * 32);
        inputs = w.padded_columns - chunk * kChunk;
    }
    __device__ __forceinline__ void copy(unsigned char* to, const unsigned char* block) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < Unit::kLow; ++i) {
            if (i * (kChunk / Unit::kLow) < inputs)
                copy_async16(to + (i * 32 + lane) * 16, block + codes + i * 64);
        }
#pragma unroll
        for (int i = 0; i < (Unit::kHigh > 0 ? 2 : 0); ++i) {
            unsigned char* const own = to + Unit::kHighAt + (i * 32 + lane) * (8 * Unit::kHigh);
            const unsigned char* const from = block + high + i * (32 * Unit::kHigh);
            if (i * 64 >= inputs) continue;
            if (Unit::kHigh == 1) copy_async8(own, from);
            if (Unit::kHigh == 2) copy_async16(own, from);
        }
        if (lane < kParts * 4)
            copy_async16(to + Unit::kScalesAt + lane * 16, block + scales + lane * 16);
        if (lane < kParts * 8)
            copy_async4(to + Unit::kZerosAt + lane * 4, block + zeros + lane * 4);
    }
    __device__ __forceinline__ void load(Chunk<kBits, kParts>& c, const unsigned char* from) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < Unit::kLow; ++i)
            c.codes[i] = *reinterpret_cast<const uint4*>(from + (i * 32 + lane) * 16);
        if constexpr (Unit::kHigh > 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const void* const own = from + Unit::kHighAt + (i * 32 + lane) * (8 * Unit::kHigh);
                if constexpr (Unit::kHigh == 1) c.high[i] = *static_cast<const uint2*>(own);
                if constexpr (Unit::kHigh == 2) c.high2[i] = *static_cast<const uint4*>(own);
            }
        }
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            const int at = ((lane >> 2) * kParts + p) * kBlockRows + (lane & 3);
            c.scale[p] = reinterpret_cast<const unsigned short*>(from + Unit::kScalesAt)[at];
            c.zero[p] = from[Unit::kZerosAt + at];
        }
    }
};

// Grid: at most a CTA per multiprocessor; threads: a warp for every unit of a row, as many times as
// blocks go side by side, and the keeper. plan: where what lies in shared memory; a ring shorter
// than kWalkDepth holds all that a warp has. Not for 8 bits, whose chunks take too many registers.
template <int kBits, int kParts>
__device__ __forceinline__ void walk(const Products& products, const RowInput& in,
                                     const WalkPlan& plan) {
    AWQE_DYNAMIC_SHARED(unsigned char, memory);
    __shared__ float shared_statistics[2];
    constexpr int kUnitGroups = kUnitChunks * kParts;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const Matrix& w = products.matrix[0];  // all of one width
    float2* const terms = reinterpret_cast<float2*>(memory + plan.terms_at);
    signed char* const codes = reinterpret_cast<signed char*>(memory);
    int2* const side = reinterpret_cast<int2*>(memory + plan.side_at);
    const int units = (w.groups + kUnitGroups - 1) / kUnitGroups;
    const bool gates = plan.epilogue == kWalkGate;
    const bool keeper = warp == int(blockDim.x) / 32 - 1;
    let_next_kernel_start();

    // This CTA's blocks: of all matrices one after the other, or pairs of a gate's and an up's.
    int total = (w.rows + kBlockRows - 1) / kBlockRows;
    for (int i = 1; !gates && i < products.count; ++i)
        total += (products.matrix[i].rows + kBlockRows - 1) / kBlockRows;
    int begin = int((long long)total * blockIdx.x / gridDim.x);
    int count = int((long long)total * (blockIdx.x + 1) / gridDim.x) - begin;
    if (gates) begin *= 2, count *= 2;
    const auto locate = [&](int block, int* number, int* own) {
        *number = gates ? block & 1 : 0;
        *own = gates ? block >> 1 : block;
        while (!gates && *number + 1 < products.count) {
            const int blocks = (products.matrix[*number].rows + kBlockRows - 1) / kBlockRows;
            if (*own < blocks) break;
            *own -= blocks;
            ++*number;
        }
    };

    // A warp has one unit of every step-th block, so where it lies in a block is known once.
    const int step = (blockDim.x / 32 - 1) / units;  // blocks that are multiplied side by side
    const int unit = warp % units;
    const int first_block = warp / units;
    const WalkPlace<kBits, kParts> place_of(w, unit);
    constexpr int kUnitBytes = WalkUnit<kBits, kParts>::kBytes;
    unsigned char* const ring = memory + plan.ring_at + warp * (plan.depth * kUnitBytes);
    int next_block = first_block;
    const unsigned char* next = nullptr;
    int left = 0;  // blocks of the matrix from the next one on
    const auto fetch = [&](unsigned char* to) {
        if (next_block < count && !keeper) {
            if (gates) {
                const int block = begin + next_block;
                next = products.matrix[block & 1].blocks + (long long)(block >> 1) * w.block_bytes;
            } else if (left <= 0) {
                int number, own;
                locate(begin + next_block, &number, &own);
                const Matrix& matrix = products.matrix[number];
                next = matrix.blocks + (long long)own * w.block_bytes;
                left = (matrix.rows + kBlockRows - 1) / kBlockRows - own;
            }
            place_of.copy(to, next);
            next += step * w.block_bytes;
            left -= step;
            next_block += step;
        }
        commit_copies();
    };
    const int k = in.codes.k;
    float* const norm_weights = reinterpret_cast<float*>(memory + plan.norm_at);
    if (in.kind == kNormed)
        for (int i = threadIdx.x * 4; i < k; i += int(blockDim.x) * 4)
            copy_async16(norm_weights + i, in.norm.weight + i);
    commit_copies();
    // Some weights before the row is there; more of them would be in its way.
#pragma unroll
    for (int i = 0; i < kWalkEarly; ++i) fetch(ring + i * kUnitBytes);
    const auto fetch_rest = [&] {
#pragma unroll
        for (int i = kWalkEarly; i < kWalkDepth; ++i) fetch(ring + i * kUnitBytes);
    };
    wait_for_kernel_before();

    // The row: quantised, in shared memory.
    const int groups = units * kUnitGroups;  // zeros behind the last
    if (in.kind == kQuantised) {
        const int4* const from = reinterpret_cast<const int4*>(in.codes.codes);
        const int2* const from_side = in.codes.side;
        for (int i = threadIdx.x; i < units * (kUnitChunks * kChunk / 16); i += blockDim.x)
            reinterpret_cast<int4*>(codes)[i] = __ldcg(from + i);
        for (int i = threadIdx.x; i < groups; i += blockDim.x) side[i] = __ldcg(from_side + i);
        fetch_rest();
    } else if (in.kind == kFloats) {
        quantize_row<kParts>(codes, side, groups, k, [&](int i) {
            return __ldcg(reinterpret_cast<const float4*>(in.x + i));
        });
        fetch_rest();
    } else {
        float* const row = reinterpret_cast<float*>(terms);  // nobody needs them yet
        const int padded = (k + kLanes - 1) / kLanes * kLanes;
        constexpr int kTogether = 3;
        for (int first = threadIdx.x * 4; first < padded;
             first += kTogether * int(blockDim.x) * 4) {
            float4 x[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
                const int i = first + j * int(blockDim.x) * 4;
                x[j] = i < k ? __ldcg(reinterpret_cast<const float4*>(in.x + i))
                             : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
                const int i = first + j * int(blockDim.x) * 4;
                if (i < padded) *reinterpret_cast<float4*>(row + i) = x[j];
            }
        }
        fetch_rest();
        __syncthreads();
        const NormWeights& norm = in.norm;
        if (warp == 0) {
            float mean = 0.0f;
            float squares;
            if (norm.layer) {
                const float sum =
                    chains_of_row(row, padded, [](float s, float x) { return s + x; });
                mean = __fdiv_rn(tree_of_lanes(sum), float(k));
                // Zeros of the padding are no numbers of the row: short chains for the last ones.
                float s = 0.0f;
                for (int i = lane & 15; i < k; i += kLanes) {
                    const float d = row[i] - mean;
                    s = fma(d, d, s);
                }
                squares = s;
            } else {
                squares = chains_of_row(row, padded, [](float s, float x) { return fma(x, x, s); });
            }
            const float inverse =
                inverse_root(__fdiv_rn(tree_of_lanes(squares), float(k)) + norm.epsilon);
            if (lane == 0) shared_statistics[0] = mean, shared_statistics[1] = inverse;
        }
        wait_for_copies<kWalkDepth>();  // norm_weights
        __syncthreads();
        const float mean = shared_statistics[0];
        const float inverse = shared_statistics[1];
        quantize_row<kParts>(codes, side, groups, k, [&](int i) {
            const float4 x = *reinterpret_cast<const float4*>(row + i);
            const float4 by = *reinterpret_cast<const float4*>(norm_weights + i);
            if (!norm.layer)
                return make_float4(x.x * inverse * by.x, x.y * inverse * by.y, x.z * inverse * by.z,
                                   x.w * inverse * by.w);
            const float* const bias = norm.bias;
            return make_float4(
                normed<true>(x.x, mean, inverse, by.x, bias == nullptr ? nullptr : bias + i),
                normed<true>(x.y, mean, inverse, by.y, bias == nullptr ? nullptr : bias + i + 1),
                normed<true>(x.z, mean, inverse, by.z, bias == nullptr ? nullptr : bias + i + 2),
                normed<true>(x.w, mean, inverse, by.w, bias == nullptr ? nullptr : bias + i + 3));
        });
    }
    __syncthreads();

    if (!keeper) {
        const int4* const x =
            reinterpret_cast<const int4*>(codes) + unit * (kUnitChunks * kChunk / 16) + (lane >> 2);
        const int chunk = unit * kUnitChunks + (lane >> 2);
        int2 own_side[kParts];
#pragma unroll
        for (int p = 0; p < kParts; ++p) own_side[p] = side[chunk * kParts + p];
        float2* const own_terms = terms + chunk * (kParts * kBlockRows) + (lane & 3);
        int batch_end = plan.batch;
        int other = 0;  // what the batch before had of the terms, this one has not
        int stage = 0;
        for (int block = first_block; block < count; block += step) {
            while (block >= batch_end) {
                __syncthreads();
                batch_end += plan.batch;
                other ^= plan.batch;
            }
            wait_for_copies<kWalkDepth - 1>();
            __syncwarp();  // the lanes' copies are each other's scales
            unsigned char* const here = ring + stage * kUnitBytes;
            Chunk<kBits, kParts> c;
            place_of.load(c, here);
            int sum[kParts];
            chunk_dots<kBits, kParts>(c, x, sum);
            float2* const to =
                own_terms + (block - batch_end + plan.batch + other) * plan.terms_stride;
#pragma unroll
            for (int p = 0; p < kParts; ++p)
                to[p * kBlockRows] =
                    make_float2(float(sum[p] - c.zero[p] * own_side[p].y),
                                half_to_float(c.scale[p]) * __int_as_float(own_side[p].x));
            __syncwarp();
            fetch(here);
            if (++stage == plan.depth) stage = 0;
        }
        for (; batch_end - plan.batch < count; batch_end += plan.batch) __syncthreads();
        return;
    }
    const int place = lane >> 2;  // of the batch
    int half = 0;
    for (int first = 0; first < count; first += plan.batch, half ^= 1) {
        const int some = min(plan.batch, count - first);
        const int at = min(place, some - 1);
        int number, own;
        locate(begin + first + at, &number, &own);
        const Matrix& mine = products.matrix[number];
        const int n = own * kBlockRows + (lane & 3);
        const bool stores = place < some && n < mine.rows;
        float* const out = products.out[gates ? 0 : number] + n;
        const float bias = stores && mine.bias != nullptr ? mine.bias[n] : 0.0f;
        const float before = stores && plan.epilogue == kWalkAdd ? __ldcg(out) : 0.0f;
        __syncthreads();
        float y = chain_ahead(terms + (half * plan.batch + at) * plan.terms_stride + (lane & 3),
                              w.groups);
        if (mine.bias != nullptr) y = y + bias;
        if (gates) {
            const float up = __shfl_down_sync(~0u, y, 4);
            if (stores && (place & 1) == 0) *out = activated(products.activation, y) * up;
        } else if (stores) {
            *out = plan.epilogue == kWalkAdd ? before + y : y;
        }
    }
}

}  // namespace awqe_cuda
