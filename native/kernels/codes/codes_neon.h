// Expands the packed codes of r4k32 (native/format/FORMAT.md, section 3) to signed bytes in NEON registers, for the matrix
// kernels of every Arm table. Owns the bit patterns only: no sums, no scales, no bounds. Everything here has internal linkage,
// because files with different instruction sets include it.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace awqe {
namespace {

// Codes<bits>: a run is the smallest piece of a block whose bytes do not mix with others'.
//   kRun        inputs of a run
//   kFields     registers of 16 inputs that a row of a run expands to; register f holds inputs 16 f ... 16 f + 15
//   kLowBytes   bytes of a run in the first plane (4 rows); kHighBytes: in the second, 3 bits only
//   kZeroBias   the bytes are code - kZeroBias, so the zero-point has to be lowered by it too; the difference is unchanged
//   expand      rows 2 * pair and 2 * pair + 1 of the run at low (and high)
template <int kBits>
struct Codes;

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kZeroBias = 0;

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/, int pair,
                                                     int8x16_t (&rows)[2][kFields]) {
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
    static constexpr int kZeroBias = 128;  // 0 ... 255 does not fit a signed byte; flipping the top bit subtracts 128

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/, int pair,
                                                     int8x16_t (&rows)[2][kFields]) {
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

    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* /*high*/, int pair,
                                                     int8x16_t (&rows)[2][kFields]) {
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

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;
    static constexpr int kZeroBias = 4;

    // code - 4 is the low two bits under a sign: where the high bit is 0, ones go into bits 2 ... 7. So the inverted high bit
    // is widened to a whole byte by a bit test, and SLI shifts it in above the low bits and drops what stood there: two
    // instructions and no masking per register.
    [[gnu::always_inline]] static inline void expand(const uint8_t* low, const uint8_t* high, int pair,
                                                     int8x16_t (&rows)[2][kFields]) {
        const uint8x16_t absent = vmvnq_u8(vld1q_u8(high + 16 * pair));  // 8 bytes of each row
        const uint8x16_t shifted = vshrq_n_u8(absent, 4);
        const uint64x2_t a = vreinterpretq_u64_u8(absent);
        const uint64x2_t s = vreinterpretq_u64_u8(shifted);
        const uint8x16_t sign[2] = {vreinterpretq_u8_u64(vzip1q_u64(a, s)),
                                    vreinterpretq_u8_u64(vzip2q_u64(a, s))};
        for (int r = 0; r < 2; ++r) {
            const uint8x16_t v = vld1q_u8(low + 32 * pair + 16 * r);
            rows[r][0] = join(v, vtstq_u8(sign[r], vdupq_n_u8(1)));
            rows[r][1] = join(vshrq_n_u8(v, 2), vtstq_u8(sign[r], vdupq_n_u8(2)));
            rows[r][2] = join(vshrq_n_u8(v, 4), vtstq_u8(sign[r], vdupq_n_u8(4)));
            rows[r][3] = join(vshrq_n_u8(v, 6), vtstq_u8(sign[r], vdupq_n_u8(8)));
        }
    }

   private:
    [[gnu::always_inline]] static inline int8x16_t join(uint8x16_t low_bits, uint8x16_t ones_above) {
        return vreinterpretq_s8_u8(vsliq_n_u8(low_bits, ones_above, 2));
    }
};

// The zero-points of one group of a block, as the four rows' int32, lowered by the bias of the codes.
template <int kBits>
[[gnu::always_inline]] inline int32x4_t load_zero_points(const uint8_t* four) {
    uint32_t packed;
    __builtin_memcpy(&packed, four, sizeof(packed));
    const uint16x8_t wide = vmovl_u8(vcreate_u8(packed));
    const int32x4_t z = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
    return Codes<kBits>::kZeroBias == 0 ? z : vsubq_s32(z, vdupq_n_s32(Codes<kBits>::kZeroBias));
}

// The scales of one group of a block: four halves as floats.
[[gnu::always_inline]] inline float32x4_t load_scales(const uint8_t* four) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(four)));
}

}  // namespace
}  // namespace awqe
