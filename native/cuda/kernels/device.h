// The arithmetic of native/ARITHMETIC.md in device code, one function per formula. Compiled with
// -fmad=false: a fused multiply-add stands where fma() is written and nowhere else.
#pragma once

#if defined(AWQE_EMULATED_GPU)
#include "tests/native/emulated_gpu/instructions.h"
#else
#include "instructions.h"
#endif
#include "parameters.h"

namespace awqe_cuda {

constexpr int kLanes = 16;

// Section 6.
__device__ __forceinline__ float exponential(float x) {
    const float given = x;
    if (x < -87.0f) return fma(given, 0.0f, 0.0f);
    if (x > 88.0f) x = 88.0f;
    const float shifted = x * 0x1.715476p+0f + 0x1.8p+23f;
    const float n = shifted - 0x1.8p+23f;
    float r = fma(-n, 0x1.62e43p-1f, x);
    r = fma(-n, -0x1.05c61p-29f, r);
    float p = 0x1.6db42ap-10f;
    p = fma(p, r, 0x1.123b56p-7f);
    p = fma(p, r, 0x1.55545ep-5f);
    p = fma(p, r, 0x1.55548ep-3f);
    p = fma(p, r, 0.5f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    return fma(given, 0.0f, p * __int_as_float((__float_as_int(shifted) + 127) << 23));
}

__device__ __forceinline__ float relu(float x) { return fma(x, 0.0f, x < 0.0f ? 0.0f : x); }

__device__ __forceinline__ float gelu(float x) {
    const float magnitude = fabsf(x);
    float z = magnitude * 0x1.6a09e6p-1f;
    if (z > 13.0f) z = 13.0f;
    const float t = __fdiv_rn(1.0f, fma(z, 0x1.4f740ap-2f, 1.0f));
    float p = 0x1.0fb844p-1f;
    p = fma(p, t, -0x1.7401c6p-1f);
    p = fma(p, t, 0x1.6be1c6p-1f);
    p = fma(p, t, -0x1.23531cp-3f);
    p = fma(p, t, 0x1.04f20cp-3f);
    return fma(-magnitude, p * t * exponential(-(z * z)), relu(x));
}

__device__ __forceinline__ float activated(int activation, float x) {
    if (activation == kRelu) return relu(x);
    if (activation == kGelu) return gelu(x);
    float exponent = x;  // of silu
    if (activation == kGeluTanh) {
        const float c = x < -16.0f ? -16.0f : x > 16.0f ? 16.0f : x;
        exponent = c * fma(c * c, 0x1.2444f2p-4f, 0x1.988454p+0f);
    }
    return __fdiv_rn(x, 1.0f + exponential(-exponent));
}

__device__ __forceinline__ float hyperbolic_tangent(float x) {
    const float magnitude = fabsf(x);
    float y;
    if (magnitude < 0x1.2p-1f) {
        const float square = x * x;
        float p = -0x1.95002p-8f;
        p = fma(p, square, 0x1.582fb2p-6f);
        p = fma(p, square, -0x1.b90948p-5f);
        p = fma(p, square, 0x1.110c72p-3f);
        p = fma(p, square, -0x1.555548p-2f);
        y = fma(x * square, p, x);
    } else {
        const float limited = magnitude < 16.0f ? magnitude : 16.0f;
        y = 1.0f - __fdiv_rn(2.0f, exponential(limited + limited) + 1.0f);
        if (x < 0.0f) y = -y;
    }
    return fma(x, 0.0f, y + 0.0f);
}
__device__ __forceinline__ float soft_cap(float x, float cap) {
    return cap * hyperbolic_tangent(__fdiv_rn(x, cap));
}

// Section 4: limits of queries, keys and values.
__device__ __forceinline__ float limited(float x, float limit) {
    return x * 0.0f + (x < -limit ? -limit : x > limit ? limit : x);
}

// Section 4: what a row is multiplied with, of its mean square plus epsilon.
__device__ __forceinline__ float inverse_root(float q) {
    return fma(q, 0.0f, __fdiv_rn(1.0f, __fsqrt_rn(q)));
}

// Section 3: magnitudes are compared as integers, so that infinity and NaN lose no comparison.
constexpr int kSmallestBits = 0x0d800000;  // 2^-100
constexpr int kInfinityBits = 0x7f800000;
__device__ __forceinline__ int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }
__device__ __forceinline__ int largest_of_warp(int bits) {
    for (int width = 16; width > 0; width /= 2) bits = max(bits, __shfl_xor_sync(~0u, bits, width));
    return bits;
}
__device__ __forceinline__ float quantum(int largest_bits) {
    if (largest_bits < kSmallestBits) return 0.0f;
    if (largest_bits >= kInfinityBits) return __int_as_float(0x7fc00000);
    return __fdiv_rn(__int_as_float(largest_bits), 127.0f);
}
// 0 where every code is.
__device__ __forceinline__ float inverse_quantum(int largest_bits) {
    if (largest_bits < kSmallestBits || largest_bits >= kInfinityBits) return 0.0f;
    return __fdiv_rn(127.0f, __int_as_float(largest_bits));
}
__device__ __forceinline__ int code_of(float x, float inverse) {
    return inverse == 0.0f ? 0 : __float_as_int(x * inverse + 0x1.8p+23f) - 0x4b400000;
}

// Section 5: sine and cosine of a position's angle.
__device__ __forceinline__ void sine_cosine(float angle, float* sine, float* cosine) {
    const float shifted = angle * 0x1.45f306p-1f + 0x1.8p+23f;
    const float turns = shifted - 0x1.8p+23f;
    float r = fma(-turns, 0x1.921fb6p+0f, angle);
    r = fma(-turns, -0x1.777a5cp-25f, r);
    r = fma(-turns, -0x1.ee59dap-50f, r);
    const float r2 = r * r;
    float s = fma(-0x1.98da08p-13f, r2, 0x1.1105b2p-7f);
    s = fma(s, r2, -0x1.555554p-3f);
    s = fma(s * r2, r, r);
    float c = fma(0x1.9a020ap-16f, r2, -0x1.6c0c8ap-10f);
    c = fma(c, r2, 0x1.55554ap-5f);
    c = fma(c, r2, -0.5f);
    c = fma(c, r2, 1.0f);
    const int quadrant = __float_as_int(shifted) & 3;
    const float a = quadrant & 1 ? c : s;
    const float b = quadrant & 1 ? s : c;
    *sine = quadrant & 2 ? -a : a;
    *cosine = quadrant == 1 || quadrant == 2 ? -b : b;
}

// Section 2, for lanes 0 ... 15 of a warp that hold one virtual lane each; every lane of the
// half-warp gets the sum. All 32 lanes call it.
__device__ __forceinline__ float tree_of_lanes(float lane) {
    for (int width = 8; width > 0; width /= 2) lane = lane + __shfl_down_sync(~0u, lane, width, 16);
    return __shfl_sync(~0u, lane, 0, 16);
}

}  // namespace awqe_cuda
