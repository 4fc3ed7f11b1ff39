// The sum of 16 virtual lanes (native/ARITHMETIC.md, section 2) in scalar code. Internal linkage,
// see half.h.
#pragma once

namespace awqe {

constexpr int kLanes = 16;  // floats of a 512-bit register, two of AVX, four of NEON

// lane: float [16]; overwritten.
static inline float tree_sum(float* lane) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    }
    return lane[0];
}

}  // namespace awqe
