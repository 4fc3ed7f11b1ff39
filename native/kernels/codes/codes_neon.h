// Expands the packed codes of r4k32 (native/format/FORMAT.md, section 3) to signed bytes in NEON
// registers, for the matrix kernels of every Arm table. Owns the bit patterns only: no sums, no
// scales, no bounds. Everything here has internal linkage, because files with different instruction
// sets include it.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace awqe {
namespace {

// Codes<bits>: a run is the smallest piece of a block whose bytes do not mix with others'.
// - kRun: inputs of a run.
// - kFields: registers that a row of a run expands to; register f holds inputs 16 f ... 16 f + 15.
// - kLowBytes: bytes of a run in the first plane, for 4 rows.
// - kHighBytes: in the second plane, which 3, 5 and 6 bits have.
// - kZeroBias: the bytes are code - kZeroBias, so the zero-point has to be lowered by it too; the
//   difference is unchanged.
// - expand: rows 2 * pair and 2 * pair + 1 of the run at low (and high).
template <int kBits>
struct Codes;

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kZeroBias = 0;

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            rows[r][0] = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
            rows[r][1] = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
        }
    }
};

template <>
struct Codes<8> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kZeroBias =
        128;  // 0 ... 255 does not fit a signed byte; flipping the top bit subtracts 128

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        for (int r = 0; r < 2; ++r) {
            for (int f = 0; f < 2; ++f) {
                const uint8x16_t v = vld1q_u8(low + 64 * pair + 32 * r + 16 * f);
                rows[r][f] = vreinterpretq_s8_u8(veorq_u8(v, vdupq_n_u8(0x80)));
            }
        }
    }
};

template <>
struct Codes<2> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kZeroBias = 0;

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        const uint8x16_t two_bits = vdupq_n_u8(3);
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            rows[r][0] = vreinterpretq_s8_u8(vandq_u8(v, two_bits));
            rows[r][1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), two_bits));
            rows[r][2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), two_bits));
            rows[r][3] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
        }
    }
};

// A second plane of one bit: for each of two rows, a register in whose bytes bit f is *unset* where
// the code of field f has its high bit.
[[gnu::always_inline]] inline void absent_high_bits(const uint8_t* high, int pair,
                                                    uint8x16_t (&rows)[2]) {
    const uint8x16_t absent = vmvnq_u8(vld1q_u8(high + 16 * pair));  // 8 bytes of each row
    const uint8x16_t shifted = vshrq_n_u8(absent, 4);
    const uint64x2_t a = vreinterpretq_u64_u8(absent);
    const uint64x2_t s = vreinterpretq_u64_u8(shifted);
    rows[0] = vreinterpretq_u8_u64(vzip1q_u64(a, s));
    rows[1] = vreinterpretq_u8_u64(vzip2q_u64(a, s));
}

// Clang turns a test of a known bit 0 into two instructions.
[[gnu::always_inline]] inline uint8x16_t bit_0() {
    uint8x16_t one = vdupq_n_u8(1);
    asm("" : "+w"(one));
    return one;
}

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;
    static constexpr int kZeroBias = 4;

    // code - 4 is the low two bits under a sign: where the high bit is 0, ones go into bits 2
    // ... 7. So the inverted high bit is widened to a whole byte by a bit test, and SLI shifts it
    // in above the low bits and drops what stood there: two instructions and no masking per
    // register.
    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* high,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        uint8x16_t sign[2];
        absent_high_bits(high, pair, sign);
        const uint8x16_t one = bit_0();
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            rows[r][0] = join(v, vtstq_u8(sign[r], one));
            rows[r][1] = join(vshrq_n_u8(v, 2), vtstq_u8(sign[r], vdupq_n_u8(2)));
            rows[r][2] = join(vshrq_n_u8(v, 4), vtstq_u8(sign[r], vdupq_n_u8(4)));
            rows[r][3] = join(vshrq_n_u8(v, 6), vtstq_u8(sign[r], vdupq_n_u8(8)));
        }
    }

  private:
    [[gnu::always_inline]] static inline int8x16_t join(uint8x16_t low_bits,
                                                        uint8x16_t ones_above) {
        return vreinterpretq_s8_u8(vsliq_n_u8(low_bits, ones_above, 2));
    }
};

template <>
struct Codes<5> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 32;
    static constexpr int kZeroBias = 16;  // the same way to code - 16 as from 3 bits to code - 4

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* high,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        uint8x16_t sign[2];
        absent_high_bits(high, pair, sign);
        const uint8x16_t one = bit_0();
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            const uint8x16_t w = vld1q_u8(low + 64 + 32 * pair + 16 * r);
            rows[r][0] = join(v, vtstq_u8(sign[r], one));
            rows[r][1] = join(vshrq_n_u8(v, 4), vtstq_u8(sign[r], vdupq_n_u8(2)));
            rows[r][2] = join(w, vtstq_u8(sign[r], vdupq_n_u8(4)));
            rows[r][3] = join(vshrq_n_u8(w, 4), vtstq_u8(sign[r], vdupq_n_u8(8)));
        }
    }

  private:
    [[gnu::always_inline]] static inline int8x16_t join(uint8x16_t low_bits,
                                                        uint8x16_t ones_above) {
        return vreinterpretq_s8_u8(vsliq_n_u8(low_bits, ones_above, 4));
    }
};

template <>
struct Codes<6> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 64;
    static constexpr int kZeroBias = 0;

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* high,
                                                     int pair, int8x16_t (&rows)[2][kFields]) {
        const uint8x16_t nibble = vdupq_n_u8(15);
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            const uint8x16_t w = vld1q_u8(low + 64 + 32 * pair + 16 * r);
            const uint8x16_t h = vld1q_u8(high + 32 * pair + 16 * r);
            rows[r][0] = join(vandq_u8(v, nibble), vshlq_n_u8(h, 4));
            rows[r][1] = join(vshrq_n_u8(v, 4), vshlq_n_u8(h, 2));
            rows[r][2] = join(vandq_u8(w, nibble), h);
            rows[r][3] = join(vshrq_n_u8(w, 4), vshrq_n_u8(h, 2));
        }
    }

  private:
    // Bits 4 and 5 of the one above the others: an insertion by a mask.
    [[gnu::always_inline]] static inline int8x16_t join(uint8x16_t low_bits, uint8x16_t high_bits) {
        return vreinterpretq_s8_u8(vbslq_u8(vdupq_n_u8(0x30), high_bits, low_bits));
    }
};

// What two neighbouring groups of a block bring besides codes: weight scales and zero-points of
// four rows, activation scale and sum of the one token. The zero-points are lowered by the bias of
// the codes. A sum fits 16 bits (128 * 127 = 16,256), so its low half in memory is its value, and
// zero-point * sum is one widening multiplication.
struct GroupPair {
    float16x8_t scales;
    int16x8_t zero_points;
    float32x2_t x_scales;
    int16x4_t x_sums;  // lanes 0 and 2
};

template <int kBits>
[[gnu::always_inline]] inline int16x8_t widen_zero_points(uint8x8_t z) {
    const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(z));
    return Codes<kBits>::kZeroBias == 0 ? wide
                                        : vsubq_s16(wide, vdupq_n_s16(Codes<kBits>::kZeroBias));
}

// scales, zero_points: of the first group in the block. x_scales, x_sums: of the first group.
template <int kBits>
[[gnu::always_inline]] inline GroupPair load_group_pair(const uint8_t* scales,
                                                        const uint8_t* zero_points,
                                                        const float* x_scales,
                                                        const int32_t* x_sums) {
    return {vreinterpretq_f16_u8(vld1q_u8(scales)), widen_zero_points<kBits>(vld1_u8(zero_points)),
            vld1_f32(x_scales), vreinterpret_s16_s32(vld1_s32(x_sums))};
}

// The same for a group without a neighbour, which becomes the pair's first: nothing behind it is
// read.
template <int kBits>
[[gnu::always_inline]] inline GroupPair load_last_group(const uint8_t* scales,
                                                        const uint8_t* zero_points,
                                                        const float* x_scales,
                                                        const int32_t* x_sums) {
    uint32_t four;
    __builtin_memcpy(&four, zero_points, sizeof(four));
    return {vreinterpretq_f16_u8(vcombine_u8(vld1_u8(scales), vdup_n_u8(0))),
            widen_zero_points<kBits>(vcreate_u8(four)), vld1_dup_f32(x_scales),
            vreinterpret_s16_s32(vld1_dup_s32(x_sums))};
}

// acc + (dots - zero-point * sum) * (weight scale * activation scale), by one fma: the float step
// of gemv_ug.h, for the pair's group kGroup.
template <int kGroup>
[[gnu::always_inline]] inline float32x4_t add_group(float32x4_t acc, int32x4_t dots,
                                                    const GroupPair& pair) {
    if constexpr (kGroup == 0) {
        const int32x4_t d = vmlsl_lane_s16(dots, vget_low_s16(pair.zero_points), pair.x_sums, 0);
        const float32x4_t scale =
            vmulq_lane_f32(vcvt_f32_f16(vget_low_f16(pair.scales)), pair.x_scales, 0);
        return vfmaq_f32(acc, vcvtq_f32_s32(d), scale);
    } else {
        const int32x4_t d = vmlsl_high_lane_s16(dots, pair.zero_points, pair.x_sums, 2);
        const float32x4_t scale = vmulq_lane_f32(vcvt_high_f32_f16(pair.scales), pair.x_scales, 1);
        return vfmaq_f32(acc, vcvtq_f32_s32(d), scale);
    }
}

}  // namespace
}  // namespace awqe
