// IEEE half precision in scalar code: exact to float, rounded to nearest even from float.
// Subnormals, infinities and NaN included. Internal linkage, so that a file built for a higher
// instruction set cannot lend its copy to another.
#pragma once

#include <stdint.h>
#include <string.h>

namespace awqe {

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
        const float magnitude = (float)mantissa * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    // Rebias from 15 to 127; the largest exponent (infinity, NaN) stays the largest.
    const uint32_t bits =
        sign | (exponent == 31 ? 0xffu << 23 : (exponent + 112) << 23) | mantissa << 13;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));  // NaN, made quiet
    if (magnitude >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00);  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {          // below 2^-14: a multiple of 2^-24
        // Adding 0.5 makes the float's last place 2^-24, so that the addition rounds to nearest
        // even for us.
        float absolute;
        memcpy(&absolute, &magnitude, sizeof(absolute));
        const float shifted = absolute + 0.5f;
        uint32_t shifted_bits;
        memcpy(&shifted_bits, &shifted, sizeof(shifted_bits));
        return (uint16_t)(sign | (shifted_bits - 0x3f000000));
    }
    // 13 bits fall away: add just under half of the last place, plus one when the last place is
    // odd.
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
}

}  // namespace awqe
