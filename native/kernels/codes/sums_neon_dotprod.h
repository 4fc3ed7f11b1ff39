// SDOT as a Sum (sums_neon.h): four products into each 32-bit lane. For files built with the
// dotprod extension only.
#pragma once

#ifndef __ARM_FEATURE_DOTPROD
#error "this header needs the compiler options for SDOT"
#endif

#include <arm_neon.h>
#include <stddef.h>

namespace awqe {
namespace {

struct SdotSum {
    static constexpr size_t kPrefetchBytes = 0;
    int32x4_t lanes;

    [[gnu::always_inline]] inline void clear() { lanes = vdupq_n_s32(0); }
    [[gnu::always_inline]] inline void add(int8x16_t codes, int8x16_t x) {
        lanes = vdotq_s32(lanes, codes, x);
    }
    [[gnu::always_inline]] static inline int32x4_t total(const SdotSum (&s)[4]) {
        return vpaddq_s32(vpaddq_s32(s[0].lanes, s[1].lanes), vpaddq_s32(s[2].lanes, s[3].lanes));
    }
};

}  // namespace
}  // namespace awqe
