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

__device__ __forceinline__ void multiply_accumulate(int (&d)[4], unsigned a0, unsigned a1,
                                                    unsigned a2, unsigned a3, int b0, int b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with signed weights, and sums that begin at `from`.
__device__ __forceinline__ void multiply_signed(int (&d)[4], const unsigned (&a)[4], int b0, int b1,
                                                const int (&from)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from[0]), "r"(from[1]),
          "r"(from[2]), "r"(from[3]));
}
__device__ __forceinline__ void multiply_unsigned(int (&d)[4], const unsigned (&a)[4], int b0,
                                                  int b1, const int (&from)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from[0]), "r"(from[1]),
          "r"(from[2]), "r"(from[3]));
}

// What a lane loads of one row's chunk, as it lies in the file.
template <int kBits>
struct RawRow {
    unsigned word[kBits == 8 ? 8 : 4];
    unsigned high[kBits == 3 ? 2 : 1];
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
        } else if constexpr (kBits == 4) {
            put(0, load16(codes + quarter * 64 + r * 16));
        } else {
            put(0, load16(codes + quarter / 2 * 64 + r * 16));
            if constexpr (kBits == 3) {
                raw.high[0] = load4(high + quarter / 2 * 32 + r * 8);
                raw.high[1] = load4(high + quarter / 2 * 32 + r * 8 + 4);
            }
        }
    } else {
        if constexpr (kBits == 8) {
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                if (s * 32 >= limit) break;
                raw.word[2 * s] = load4(codes + s * 128 + r * 32 + quarter * 4);
                raw.word[2 * s + 1] = load4(codes + s * 128 + r * 32 + 16 + quarter * 4);
            }
        } else if constexpr (kBits == 4) {
#pragma unroll
            for (int s = 0; s < 4; ++s)
                if (s * 32 < limit) raw.word[s] = load4(codes + s * 64 + r * 16 + quarter * 4);
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (i * 64 >= limit) break;
                raw.word[i] = load4(codes + i * 64 + r * 16 + quarter * 4);
                if constexpr (kBits == 3)
                    raw.high[i] = load4(high + i * 32 + r * 8 + quarter % 2 * 4);
            }
        }
    }
}

// The two words of step s, a byte per code.
template <int kBits, bool kWholeGroup>
__device__ __forceinline__ void step_words(const RawRow<kBits>& raw, int quarter, int s,
                                           unsigned& first, unsigned& second) {
    if constexpr (kBits == 8) {
        first = raw.word[2 * s], second = raw.word[2 * s + 1];
    } else if constexpr (kBits == 4) {
        if constexpr (kWholeGroup) {  // words 0 ... 3 are low nibbles, 4 ... 7 high ones
            const int shift = s < 2 ? 0 : 4;
            first = (raw.word[2 * (s & 1)] >> shift) & 0x0f0f0f0fu;
            second = (raw.word[2 * (s & 1) + 1] >> shift) & 0x0f0f0f0fu;
        } else {
            first = raw.word[s] & 0x0f0f0f0fu;
            second = (raw.word[s] >> 4) & 0x0f0f0f0fu;
        }
    } else {
        // Fields of 16 inputs: two of them make 32. A word of the low plane holds inputs 4 i ...
        // 4 i + 3 of every field; in the high plane these are bytes 4 (i % 2) ..., bit f or 4 + f.
        const auto code = [](unsigned low, unsigned high, int field, int upper) {
            unsigned value = (low >> (2 * field)) & 0x03030303u;
            if constexpr (kBits == 3) value |= ((high >> (field + 4 * upper)) & 0x01010101u) << 2;
            return value;
        };
        if constexpr (kWholeGroup) {
            const int field = 2 * (quarter & 1) + (s >> 1);
            const int i = 2 * (s & 1);
            first = code(raw.word[i], raw.high[0], field, s & 1);
            second = code(raw.word[i + 1], raw.high[kBits == 3 ? 1 : 0], field, s & 1);
        } else {
            const int field = 2 * (s & 1);
            const unsigned high = raw.high[kBits == 3 ? s >> 1 : 0];
            first = code(raw.word[s >> 1], high, field, quarter >> 1);
            second = code(raw.word[s >> 1], high, field + 1, quarter >> 1);
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
