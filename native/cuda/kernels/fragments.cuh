// Codes of packed rows as operands of the int8 tensor cores, mma.m16n8k32 with unsigned weights and
// signed activations. Owns the order in which the inputs of a chunk meet: an exact sum does not see
// it, so both operands are permuted alike and no code moves between lanes.
//
// Lane = row or token * 4 + quarter. Two orders:
// - whole chunk is one group (kParts 1): a quarter is 32 neighbouring inputs, so a lane's weights
//   are one or two 16-byte loads as they lie in the file. Word i holds inputs 4 i ... 4 i + 3 of
//   the quarter; step s multiplies words 2 s and 2 s + 1.
// - groups of 64 or 32: step s may hold only inputs of one group, here 32 neighbouring ones; lane
//   `quarter` has inputs 4 quarter ... + 3 and 16 + 4 quarter ... + 3 of them.
#pragma once

#include "device.h"

namespace awqe_cuda {

// What a lane loads of one row's chunk, as it lies in the file.
template <int kBits>
struct RawRow {
    static constexpr int kLow = kLowBits<kBits>;
    static constexpr int kHigh = kBits - kLow;
    unsigned word[kBits == 8 ? 8 : 4];
    unsigned high[kHigh == 2 ? 4 : kHigh == 1 ? 2 : 1];
};

// `codes` and `high`: the block's planes at this chunk. kGlobal: they lie in global memory and are
// read once. A lane behind the row's last input loads nothing: `limit` = padded inputs of the row
// from the chunk on.
template <int kBits, bool kWholeGroup, bool kGlobal>
__device__ __forceinline__ void load_raw(RawRow<kBits>& raw, const unsigned char* codes,
                                         const unsigned char* high, int r, int quarter, int limit) {
    const auto load16 = [](const void* p) {
        return kGlobal ? load_codes(p) : *static_cast<const uint4*>(p);
    };
    const auto load4 = [](const void* p) {
        return kGlobal ? __ldg(static_cast<const unsigned*>(p)) : *static_cast<const unsigned*>(p);
    };
    constexpr int kLow = RawRow<kBits>::kLow;
    constexpr int kHigh = RawRow<kBits>::kHigh;
    const auto put = [&](int at, uint4 v) {
        raw.word[at] = v.x, raw.word[at + 1] = v.y, raw.word[at + 2] = v.z, raw.word[at + 3] = v.w;
    };
#pragma unroll
    for (unsigned& word : raw.word) word = 0;
#pragma unroll
    for (unsigned& word : raw.high) word = 0;
    if constexpr (kWholeGroup) {
        if (quarter * 32 >= limit) return;
        if constexpr (kBits == 8) {
            put(0, load16(codes + quarter * 128 + r * 32));
            put(4, load16(codes + quarter * 128 + r * 32 + 16));
        } else if constexpr (kLow == 4) {
            put(0, load16(codes + quarter * 64 + r * 16));
        } else {
            put(0, load16(codes + quarter / 2 * 64 + r * 16));
        }
        if constexpr (kHigh == 1) {
            raw.high[0] = load4(high + quarter / 2 * 32 + r * 8);
            raw.high[1] = load4(high + quarter / 2 * 32 + r * 8 + 4);
        } else if constexpr (kHigh == 2) {
            const uint4 v = load16(high + quarter / 2 * 64 + r * 16);
            raw.high[0] = v.x, raw.high[1] = v.y, raw.high[2] = v.z, raw.high[3] = v.w;
        }
    } else {
        if constexpr (kBits == 8) {
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                if (s * 32 >= limit) break;
                raw.word[2 * s] = load4(codes + s * 128 + r * 32 + quarter * 4);
                raw.word[2 * s + 1] = load4(codes + s * 128 + r * 32 + 16 + quarter * 4);
            }
        } else if constexpr (kLow == 4) {
#pragma unroll
            for (int s = 0; s < 4; ++s)
                if (s * 32 < limit) raw.word[s] = load4(codes + s * 64 + r * 16 + quarter * 4);
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (i * 64 < limit) raw.word[i] = load4(codes + i * 64 + r * 16 + quarter * 4);
        }
        if constexpr (kHigh > 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (i * 64 < limit)
                    raw.high[i] = kHigh == 1 ? load4(high + i * 32 + r * 8 + quarter % 2 * 4)
                                             : load4(high + i * 64 + r * 16 + quarter * 4);
        }
    }
}

// The two words of step s, a byte per code.
template <int kBits, bool kWholeGroup>
__device__ __forceinline__ void step_words(const RawRow<kBits>& raw, int quarter, int s,
                                           unsigned& first, unsigned& second) {
    constexpr int kLow = RawRow<kBits>::kLow;
    constexpr int kHigh = RawRow<kBits>::kHigh;
    if constexpr (kBits == 8) {
        first = raw.word[2 * s], second = raw.word[2 * s + 1];
    } else {
        // Fields of 16 inputs: two of them make the 32 of a step or of a quarter. A word of a plane
        // of two bits holds inputs 4 i ... 4 i + 3 of four fields, one of four bits of two; in a
        // plane of one bit these inputs are bytes 4 (i % 2) ..., bit f or 4 + f.
        const auto code = [](unsigned low, unsigned high, int field, int upper) {
            unsigned value = kLow == 4 ? (low >> (4 * (field & 1))) & 0x0f0f0f0fu
                                       : (low >> (2 * field)) & 0x03030303u;
            if constexpr (kHigh == 1)
                value |= ((high >> (field + 4 * upper)) & 0x01010101u) << kLow;
            if constexpr (kHigh == 2) value |= ((high >> (2 * field)) & 0x03030303u) << kLow;
            return value;
        };
        if constexpr (kWholeGroup) {
            const int field = 2 * (quarter & 1) + (s >> 1);
            const int i = 2 * (s & 1);
            const int h = kHigh == 2 ? i : 0;  // of the high plane's words
            first = code(raw.word[i], raw.high[h], field, s & 1);
            second = code(raw.word[i + 1], raw.high[kHigh > 0 ? h + 1 : 0], field, s & 1);
        } else {
            const int field = 2 * (s & 1);
            const unsigned low = raw.word[kLow == 4 ? s : s >> 1];
            const unsigned high = raw.high[kHigh > 0 ? s >> 1 : 0];
            first = code(low, high, field, quarter >> 1);
            second = code(low, high, field + 1, quarter >> 1);
        }
    }
}

// Activations of one token's chunk, in the order of the weights. `x`: 128 codes, 16-byte aligned.
template <bool kWholeGroup>
__device__ __forceinline__ void load_inputs(int (&b)[8], const signed char* x, int quarter) {
    if constexpr (kWholeGroup) {
        const int4 low = *reinterpret_cast<const int4*>(x + quarter * 32);
        const int4 high = *reinterpret_cast<const int4*>(x + quarter * 32 + 16);
        b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
        b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
    } else {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            b[2 * s] = *reinterpret_cast<const int*>(x + s * 32 + quarter * 4);
            b[2 * s + 1] = *reinterpret_cast<const int*>(x + s * 32 + 16 + quarter * 4);
        }
    }
}

}  // namespace awqe_cuda
