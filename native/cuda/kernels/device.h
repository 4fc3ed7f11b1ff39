// The arithmetic of native/ARITHMETIC.md in device code, one function per formula, and the few
// instructions that C++ has no word for. Compiled with -fmad=false: a fused multiply-add stands
// where fma() is written and nowhere else.
#pragma once

#include "parameters.h"

namespace awqe_cuda {

constexpr int kLanes = 16;

__device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(value));
    return bits;
}

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

// codes: four unsigned bytes; x: four signed ones.
__device__ __forceinline__ int dot4(unsigned codes, int x, int sum) {
    int result;
    asm("dp4a.u32.s32 %0,%1,%2,%3;" : "=r"(result) : "r"(codes), "r"(x), "r"(sum));
    return result;
}

// Weights are read once: past the first cache, which activations need. Volatile, like the two small
// loads below: the compiler otherwise moves side loads down to their use, and every unit of work
// then waits for memory a second time.
__device__ __forceinline__ uint4 load_codes(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 load_plane(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ unsigned short load_scale(const void* p) {
    unsigned short v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ int load_zero(const void* p) {
    int v;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// Programmatic launch (sm_90): a kernel may begin while the one before it ends, and reads weights
// in that time. Whatever an earlier kernel writes is read, and anything is written, only behind
// wait_for_kernel_before(). Every kernel calls both, or completion would not be transitive.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace awqe_cuda
