// Packed matrices times one row of quantised inputs (native/ARITHMETIC.md, section 3): the kernel
// in which a decoding GPU spends its time. Bound by memory: a token reads every weight once.
//
// A lane owns (chunk of 128 inputs, row of a block): it loads that row's codes of the chunk, 16
// bytes at a time, and has the chunk's exact group dots without exchanging anything with another
// lane. (float(D), s_w * s_x) go to shared memory; behind a barrier one lane per row walks them in
// ascending order of groups, by fma, which is the contract's only ordered part. Several warps share
// a block of rows: long rows of few outputs otherwise leave the memory idle.
//
// Loads of weights are issued in front of wait_for_kernel_before(): they depend on no kernel.
#pragma once

#include "device.h"

namespace awqe_cuda {

// What a lane holds of its chunk: codes of one row and the side data of its groups.
template <int kBits, int kParts>
struct Chunk {
    static constexpr int kLow = kLowBits<kBits>;
    static constexpr int kLoads = kLow;
    uint4 codes[kLoads];
    uint2 high[kBits - kLow == 1 ? 2 : 1];   // a plane of one bit
    uint4 high2[kBits - kLow == 2 ? 2 : 1];  // a plane of two
    unsigned short scale[kParts];
    int zero[kParts];
};

template <int kBits, int kParts>
__device__ __forceinline__ void load_chunk(Chunk<kBits, kParts>& c, const Matrix& w,
                                           const unsigned char* block, int chunk, int r) {
    constexpr int kLoads = Chunk<kBits, kParts>::kLoads;
    constexpr int kLoadInputs = kChunk / kLoads;  // inputs behind one load
    // Bytes from one run of inputs to the next, and of a row in a run.
    constexpr int kRun = kBits == 8 ? 128 : 64;
    constexpr int kRow = kBits == 8 ? 32 : 16;
    constexpr int kHigh = kBits - kLowBits<kBits>;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        const int input = chunk * kChunk + i * kLoadInputs;
        if (input < w.padded_columns) {
            const int run = kBits == 8 ? chunk * 4 + i / 2 : chunk * kLoads + i;
            const int within = kBits == 8 ? i % 2 * 16 : 0;
            c.codes[i] = load_codes(block + w.codes_offset + run * kRun + r * kRow + within);
        } else {
            c.codes[i] = make_uint4(0, 0, 0, 0);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // the high plane: 64 inputs behind one load
        const int run = chunk * 2 + i;
        const bool inside = run * 64 < w.padded_columns;
        const unsigned char* const plane = block + w.high_plane_offset;
        const unsigned char* const at = plane + run * (32 * kHigh) + r * (8 * kHigh);
        if (kHigh == 1) c.high[i] = inside ? load_plane(at) : make_uint2(0, 0);
        if (kHigh == 2) c.high2[i] = inside ? load_codes(at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
        const int group = chunk * kParts + p;
        const bool inside = group < w.groups;
        c.scale[p] = inside ? load_scale(block + (group * kBlockRows + r) * 2) : 0;
        c.zero[p] = inside ? load_zero(block + w.zero_points_offset + group * kBlockRows + r) : 0;
    }
}

__device__ __forceinline__ int dot16(uint4 c, unsigned mask, int4 x, int sum) {
    sum = dot4(c.x & mask, x.x, sum);
    sum = dot4(c.y & mask, x.y, sum);
    sum = dot4(c.z & mask, x.z, sum);
    return dot4(c.w & mask, x.w, sum);
}

// Sixteen codes of 3, 5 or 6 bits: piece `i` of a chunk, both planes of it joined.
template <int kBits, int kParts>
__device__ __forceinline__ uint4 joined_codes(const Chunk<kBits, kParts>& c, int i) {
    constexpr int kLow = kLowBits<kBits>;
    constexpr unsigned kMask = kLow == 4 ? 0x0f0f0f0fu : 0x03030303u;
    constexpr int kFields = 8 / kLow;  // pieces behind one load of the low plane
    const uint4 low = c.codes[i / kFields];
    const int shift = i % kFields * kLow;
    const int f = i % 4;
    if constexpr (kBits - kLow == 1) {
        const uint2 high = c.high[i / 4];
        const auto join = [&](unsigned l, unsigned h, int bit) {
            return ((l >> shift) & kMask) | (((h >> bit) & 0x01010101u) << kLow);
        };
        return make_uint4(join(low.x, high.x, f), join(low.y, high.y, f),
                          join(low.z, high.x, 4 + f), join(low.w, high.y, 4 + f));
    } else {
        const uint4 high = c.high2[i / 4];
        const auto join = [&](unsigned l, unsigned h) {
            return ((l >> shift) & kMask) | (((h >> (2 * f)) & 0x03030303u) << kLow);
        };
        return make_uint4(join(low.x, high.x), join(low.y, high.y), join(low.z, high.z),
                          join(low.w, high.w));
    }
}

// sum[p] = sum of code * x over part p of the chunk. `x`: the unit's pieces of this chunk, 8 apart.
template <int kBits, int kParts>
__device__ __forceinline__ void chunk_dots(const Chunk<kBits, kParts>& c, const int4* x,
                                           int (&sum)[kParts]) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) sum[p] = 0;
    // Piece i of 16 inputs belongs to part i * kParts / 8.
    if constexpr (kBits == 8) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int& s = sum[i * kParts / 8];
            s = dot16(c.codes[i], ~0u, x[i * kUnitChunks], s);
        }
    } else if constexpr (kBits == 4) {
        // The high nibbles stay where they are: their sum is 16 times too large, and exact.
        int high[kParts];
#pragma unroll
        for (int p = 0; p < kParts; ++p) high[p] = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int p = i * kParts / 4;
            sum[p] = dot16(c.codes[i], 0x0f0f0f0fu, x[2 * i * kUnitChunks], sum[p]);
            high[p] = dot16(c.codes[i], 0xf0f0f0f0u, x[(2 * i + 1) * kUnitChunks], high[p]);
        }
#pragma unroll
        for (int p = 0; p < kParts; ++p) sum[p] += high[p] >> 4;
    } else if constexpr (kBits == 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int f = 0; f < 4; ++f) {
                int& s = sum[(4 * i + f) * kParts / 8];
                s += dot16(c.codes[i], 0x03030303u << (2 * f), x[(4 * i + f) * kUnitChunks], 0) >>
                     (2 * f);
            }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int& s = sum[i * kParts / 8];
            s = dot16(joined_codes(c, i), ~0u, x[i * kUnitChunks], s);
        }
    }
}

// Leaves (float(D), s_w * s_x) of a chunk's groups in `terms`, a row's [groups], kBlockRows apart.
template <int kBits, int kParts>
__device__ __forceinline__ void add_terms(const Chunk<kBits, kParts>& c, const Activations& x,
                                          int unit, int chunk, int chunk_of_unit, float2* terms) {
    int sum[kParts];
    const int4* const pieces =
        reinterpret_cast<const int4*>(x.codes) + unit * (kUnitChunks * kChunk / 16) + chunk_of_unit;
    chunk_dots<kBits, kParts>(c, pieces, sum);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
        const int group = chunk * kParts + p;
        const int2 side = x.side[group];
        terms[group * kBlockRows] = make_float2(float(sum[p] - c.zero[p] * side.y),
                                                half_to_float(c.scale[p]) * __int_as_float(side.x));
    }
}

// Groups of a row whose terms wait in shared memory at once: 16 KB per block of rows.
constexpr int kPassGroups = 512;

// Continues the row's sum over `count` groups. Terms of one row lie kBlockRows apart.
__device__ __forceinline__ float chain(const float2* terms, int count, float sum) {
    int g = 0;
    for (; g + 8 <= count; g += 8) {
        float2 t[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) t[i] = terms[(g + i) * kBlockRows];
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fma(t[i].x, t[i].y, sum);
    }
    for (; g < count; ++g) sum = fma(terms[g * kBlockRows].x, terms[g * kBlockRows].y, sum);
    return sum;
}

constexpr int kGemvWarps = 8;

enum class Epilogue {
    kStore,  // out[n] = y
    kAdd,    // out[n] += y: the residual stream
    kGate    // out[n] = act(y of matrix 0) * y of matrix 1
};

// `share`: warps that share a block of rows, 1, 2, 4 or 8 (kGate: at most 4). Shared memory:
// terms_stride float2 per block of rows; terms_stride = min(groups rounded up to units,
// kPassGroups) * 4 + 4, the 4 against bank conflicts between blocks.
template <int kBits, int kParts, Epilogue kEpilogue>
__device__ __forceinline__ void gemv(const Products& products, const Activations& x, int share,
                                     int terms_stride) {
    AWQE_DYNAMIC_SHARED(float2, shared_terms);
    __shared__ float shared_gate[kGemvWarps * kBlockRows];
    constexpr int kUnitGroups = kUnitChunks * kParts;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int part = warp % share;
    const int slot = warp / share;
    const int slots = kGemvWarps / share;
    let_next_kernel_start();

    // Which matrix, and which block of its rows.
    int number, block_number;
    if (kEpilogue == Epilogue::kGate) {
        number = slot & 1;
        block_number = blockIdx.x * (slots / 2) + slot / 2;
    } else {
        number = 0;
        block_number = blockIdx.x * slots + slot;
        while (number + 1 < products.count) {
            const int blocks = (products.matrix[number].rows + kBlockRows - 1) / kBlockRows;
            if (block_number < blocks) break;
            block_number -= blocks;
            ++number;
        }
    }
    const Matrix& w = products.matrix[number];
    const bool active = block_number < (w.rows + kBlockRows - 1) / kBlockRows;
    const unsigned char* const block = w.blocks + (long long)block_number * w.block_bytes;
    float2* const terms = shared_terms + slot * terms_stride;
    const int units = (w.groups + kUnitGroups - 1) / kUnitGroups;
    constexpr int kPassUnits = kPassGroups / kUnitGroups;
    const int r = lane & 3;

    float y = 0.0f;
    bool waited = false;
    for (int pass = 0; pass < units; pass += kPassUnits) {
        const int end = min(pass + kPassUnits, units);
        if (pass > 0) __syncthreads();  // the terms before were added
        for (int unit = pass + part; unit < end; unit += share) {
            const int chunk = unit * kUnitChunks + (lane >> 2);
            Chunk<kBits, kParts> c;
            if (active) load_chunk<kBits, kParts>(c, w, block, chunk, r);
            if (!waited) {
                wait_for_kernel_before();
                waited = true;
            }
            if (!active) continue;
            add_terms<kBits, kParts>(c, x, unit, chunk, lane >> 2,
                                     terms - pass * (kUnitGroups * kBlockRows) + r);
        }
        if (!waited) {
            wait_for_kernel_before();
            waited = true;
        }
        __syncthreads();
        if (active && part == 0 && lane < kBlockRows) {
            const int first = pass * kUnitGroups;
            y = chain(terms + lane, min(w.groups - first, (end - pass) * kUnitGroups), y);
        }
    }

    const int n = block_number * kBlockRows + lane;
    const bool mine = active && part == 0 && lane < kBlockRows && n < w.rows;
    if (mine && w.bias != nullptr) y = y + w.bias[n];
    if (kEpilogue == Epilogue::kGate) {
        if (mine) shared_gate[slot * kBlockRows + lane] = y;
        __syncthreads();
        if (mine && number == 0) {
            const float up = shared_gate[(slot + 1) * kBlockRows + lane];
            products.out[0][n] = activated(products.activation, y) * up;
        }
    } else if (mine) {
        float* const out = products.out[number];
        out[n] = kEpilogue == Epilogue::kAdd ? out[n] + y : y;
    }
}

}  // namespace awqe_cuda
