// How the products of a group are added for one row, with the multiplications of armv8.0. Owns the
// bounds of the 16-bit lanes and nothing else. Internal linkage, as in codes_neon.h.
#pragma once

#include <arm_neon.h>
#include <stddef.h>

namespace awqe {
namespace {

// How far ahead of the reading a Cortex-A72 is told what comes: the time of a DRAM access at the 4
// to 5 GB/s it reads. 0 leaves it to the core; those with SDOT follow a sequential stream by
// themselves.
constexpr size_t kA72PrefetchBytes = 1024;

// A Sum adds 16 products at a time for one row; total() gives the sums of four rows.

// 2 to 5 bits: a group of 128 inputs puts 16 products into each 16-bit lane, at most 16 * 15 * 127
// = 30,480 at 4 bits and 16 * 16 * 127 = 32,512 at 5, whose codes are lowered by 16, so nothing is
// widened before the group's end. SMLAL is the only multiplication
// here: the Cortex-A72 starts one per cycle.
struct Int16Sum {
    static constexpr size_t kPrefetchBytes = kA72PrefetchBytes;
    int16x8_t lanes;

    [[gnu::always_inline]] inline void clear() { lanes = vdupq_n_s16(0); }
    [[gnu::always_inline]] inline void add(int8x16_t codes, int8x16_t x) {
        lanes = vmlal_s8(lanes, vget_low_s8(codes), vget_low_s8(x));
        lanes = vmlal_high_s8(lanes, codes, x);
    }
    [[gnu::always_inline]] static inline int32x4_t total(const Int16Sum (&s)[4]) {
        return vpaddq_s32(vpaddq_s32(vpaddlq_s16(s[0].lanes), vpaddlq_s16(s[1].lanes)),
                          vpaddq_s32(vpaddlq_s16(s[2].lanes), vpaddlq_s16(s[3].lanes)));
    }
};

// 6 and 8 bits: two products of 8 bits are all that a 16-bit lane holds, 2 * 128 * 127 = 32,512.
struct Int32Sum {
    static constexpr size_t kPrefetchBytes = kA72PrefetchBytes;
    int32x4_t lanes;

    [[gnu::always_inline]] inline void clear() { lanes = vdupq_n_s32(0); }
    [[gnu::always_inline]] inline void add(int8x16_t codes, int8x16_t x) {
        const int16x8_t products = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
        lanes = vpadalq_s16(lanes, vmlal_high_s8(products, codes, x));
    }
    [[gnu::always_inline]] static inline int32x4_t total(const Int32Sum (&s)[4]) {
        return vpaddq_s32(vpaddq_s32(s[0].lanes, s[1].lanes), vpaddq_s32(s[2].lanes, s[3].lanes));
    }
};

}  // namespace
}  // namespace awqe
