// The exponential of native/ARITHMETIC.md, section 6, in scalar code. Internal linkage, see half.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace awqe {

static inline float exp_scalar(float x) {
    // +0 for a number, whose sum with a result changes no bit; NaN for what is not finite.
    const float nothing = x * 0.0f + 0.0f;
    if (x < -87.0f) return nothing;
    if (x > 88.0f) x = 88.0f;
    // n = x / ln 2 to the nearest even integer: 1.5 * 2^23 leaves no bit for a fraction.
    const float shifted = x * 0x1.715476p+0f + 0x1.8p+23f;
    const float n = shifted - 0x1.8p+23f;
    float r = fmaf(-n, 0x1.62e43p-1f, x);
    r = fmaf(-n, -0x1.05c61p-29f, r);
    float p = 0x1.6db42ap-10f;
    p = fmaf(p, r, 0x1.123b56p-7f);
    p = fmaf(p, r, 0x1.55545ep-5f);
    p = fmaf(p, r, 0x1.55548ep-3f);
    p = fmaf(p, r, 0x1p-1f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    uint32_t shifted_bits;
    memcpy(&shifted_bits, &shifted, sizeof(shifted_bits));
    // The low bits of `shifted` are n; 2^n by its exponent field, -126 <= n <= 127.
    const uint32_t power_bits = (shifted_bits + 127) << 23;
    float power;
    memcpy(&power, &power_bits, sizeof(power));
    return p * power + nothing;
}

}  // namespace awqe
