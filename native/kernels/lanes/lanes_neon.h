// Sixteen float lanes in four NEON registers; lanes/README.md says what each function gives.
// Included once per kernel file.
#pragma once

#if !defined(__ARM_NEON) || !defined(__aarch64__)
#error "lanes_neon.h needs a 64-bit Arm compiler"
#endif

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace awqe {
namespace {

[[maybe_unused]] constexpr size_t kRegisterBytes = size_t{32} * 16;

struct Lanes {
    float32x4_t q[4];  // lanes 4 i ... 4 i + 3
};

struct IntLanes {
    int32x4_t q[4];
};

[[maybe_unused]] inline Lanes broadcast(float v) {
    const float32x4_t four = vdupq_n_f32(v);
    return {{four, four, four, four}};
}
[[maybe_unused]] inline Lanes zero() { return broadcast(0.0f); }
[[maybe_unused]] inline Lanes load(const float* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
[[maybe_unused]] inline Lanes load_each_four_times(const float* p) {
    return {{vld1q_dup_f32(p), vld1q_dup_f32(p + 1), vld1q_dup_f32(p + 2), vld1q_dup_f32(p + 3)}};
}
[[maybe_unused]] inline void store(float* p, Lanes v) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v.q[i]);
}
// The first n of four. Written out: a call of memcpy in a loop, even one never reached, would cost
// every register that the loop keeps.
[[maybe_unused]] inline float32x4_t load_four_first(const float* p, size_t n) {
    if (n >= 4) return vld1q_f32(p);
    float32x2_t low = vdup_n_f32(0.0f);
    float32x2_t high = low;
    if (n >= 2) low = vld1_f32(p);
    if (n == 1) low = vld1_lane_f32(p, low, 0);
    if (n == 3) high = vld1_lane_f32(p + 2, high, 0);
    return vcombine_f32(low, high);
}
[[maybe_unused]] inline void store_four_first(float* p, size_t n, float32x4_t v) {
    if (n >= 4) return vst1q_f32(p, v);
    if (n >= 2) vst1_f32(p, vget_low_f32(v));
    if (n == 1) vst1q_lane_f32(p, v, 0);
    if (n == 3) vst1q_lane_f32(p + 2, v, 2);
}
[[maybe_unused]] inline Lanes load_first(const float* p, size_t n) {
    Lanes v;
    for (size_t i = 0; i < 4; ++i) v.q[i] = load_four_first(p + 4 * i, n > 4 * i ? n - 4 * i : 0);
    return v;
}
[[maybe_unused]] inline void store_first(float* p, size_t n, Lanes v) {
    for (size_t i = 0; i < 4; ++i) store_four_first(p + 4 * i, n > 4 * i ? n - 4 * i : 0, v.q[i]);
}
[[maybe_unused]] inline Lanes load_half(const uint16_t* p) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return v;
}
[[maybe_unused]] inline uint16x4_t load_four_halves_first(const uint16_t* p, size_t n) {
    if (n >= 4) return vld1_u16(p);
    uint16x4_t v = vdup_n_u16(0);
    if (n >= 1) v = vld1_lane_u16(p, v, 0);
    if (n >= 2) v = vld1_lane_u16(p + 1, v, 1);
    if (n >= 3) v = vld1_lane_u16(p + 2, v, 2);
    return v;
}
[[maybe_unused]] inline Lanes load_half_first(const uint16_t* p, size_t n) {
    Lanes v;
    for (size_t i = 0; i < 4; ++i) {
        const uint16x4_t four = load_four_halves_first(p + 4 * i, n > 4 * i ? n - 4 * i : 0);
        v.q[i] = vcvt_f32_f16(vreinterpret_f16_u16(four));
    }
    return v;
}
[[maybe_unused]] inline Lanes int8_lanes(int8x16_t codes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(codes));
    const int16x8_t high = vmovl_s8(vget_high_s8(codes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
             vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
[[maybe_unused]] inline Lanes load_int8(const int8_t* p) { return int8_lanes(vld1q_s8(p)); }
[[maybe_unused]] inline Lanes load_int8_first(const int8_t* p, size_t n) {
    uint64_t halves[2] = {0, 0};
    for (size_t i = 0; i < n; ++i) halves[i / 8] |= (uint64_t)(uint8_t)p[i] << (8 * (i % 8));
    return int8_lanes(
        vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(halves[0]), vcreate_u64(halves[1]))));
}
// The conversion rounds by the mode in FPCR, which the library leaves at nearest even.
[[maybe_unused]] inline void store_half(uint16_t* p, Lanes v) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.q[i])));
}
[[maybe_unused]] inline void store_half_first(uint16_t* p, size_t n, Lanes v) {
    uint16_t all[16];
    store_half(all, v);
    memcpy(p, all, n * sizeof(uint16_t));
}
[[maybe_unused]] inline Lanes add(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vaddq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes sub(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vsubq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes mul(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vmulq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes div(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vdivq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vfmaq_f32(c.q[i], a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes fnma(Lanes a, Lanes b, Lanes c) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vfmsq_f32(c.q[i], a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes max(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vmaxnmq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes min(Lanes a, Lanes b) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vminnmq_f32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes negate(Lanes a) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vnegq_f32(a.q[i]);
    return v;
}
[[maybe_unused]] inline Lanes zero_where_less(Lanes value, Lanes x, Lanes limit) {
    Lanes v;
    for (int i = 0; i < 4; ++i) {
        v.q[i] = vreinterpretq_f32_u32(
            vbicq_u32(vreinterpretq_u32_f32(value.q[i]), vcltq_f32(x.q[i], limit.q[i])));
    }
    return v;
}
// The low bits of `shifted` are n; 2^n by its exponent field.
[[maybe_unused]] inline Lanes power_of_two(Lanes shifted) {
    Lanes v;
    for (int i = 0; i < 4; ++i) {
        const int32x4_t biased = vaddq_s32(vreinterpretq_s32_f32(shifted.q[i]), vdupq_n_s32(127));
        v.q[i] = vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    return v;
}
// The first two levels of the tree: lane i + 8, then lane i + 4.
[[maybe_unused]] inline float32x4_t four_lanes(Lanes v) {
    return vaddq_f32(vaddq_f32(v.q[0], v.q[2]), vaddq_f32(v.q[1], v.q[3]));
}
[[maybe_unused]] inline float sum(Lanes v) {
    const float32x4_t four = four_lanes(v);
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
// The last two levels of four trees at once: lane i + 2, then lane i + 1.
[[maybe_unused]] inline void sum_four(float* out, Lanes a, Lanes b, Lanes c, Lanes d) {
    const float64x2_t fa = vreinterpretq_f64_f32(four_lanes(a));
    const float64x2_t fb = vreinterpretq_f64_f32(four_lanes(b));
    const float64x2_t fc = vreinterpretq_f64_f32(four_lanes(c));
    const float64x2_t fd = vreinterpretq_f64_f32(four_lanes(d));
    const float32x4_t ab = vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(fa, fb)),
                                     vreinterpretq_f32_f64(vzip2q_f64(fa, fb)));
    const float32x4_t cd = vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(fc, fd)),
                                     vreinterpretq_f32_f64(vzip2q_f64(fc, fd)));
    vst1q_f32(out, vpaddq_f32(ab, cd));
}
[[maybe_unused]] inline float largest(Lanes v) {
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v.q[0], v.q[1]), vmaxnmq_f32(v.q[2], v.q[3])));
}
[[maybe_unused]] inline IntLanes int_zero() {
    const int32x4_t four = vdupq_n_s32(0);
    return {{four, four, four, four}};
}
[[maybe_unused]] inline IntLanes int_add(IntLanes a, IntLanes b) {
    IntLanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vaddq_s32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline IntLanes magnitude_bits(Lanes a) {
    IntLanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vreinterpretq_s32_f32(vabsq_f32(a.q[i]));
    return v;
}
[[maybe_unused]] inline IntLanes int_max(IntLanes a, IntLanes b) {
    IntLanes v;
    for (int i = 0; i < 4; ++i) v.q[i] = vmaxq_s32(a.q[i], b.q[i]);
    return v;
}
[[maybe_unused]] inline int32_t int_largest(IntLanes v) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(v.q[0], v.q[1]), vmaxq_s32(v.q[2], v.q[3])));
}
[[maybe_unused]] inline int32_t int_sum(IntLanes v) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(v.q[0], v.q[1]), vaddq_s32(v.q[2], v.q[3])));
}
[[maybe_unused]] inline IntLanes round_to_int(Lanes v) {
    IntLanes rounded;
    for (int i = 0; i < 4; ++i) rounded.q[i] = vcvtnq_s32_f32(v.q[i]);
    return rounded;
}
[[maybe_unused]] inline void store_int8(int8_t* p, IntLanes v) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(v.q[0]), vqmovn_s32(v.q[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(v.q[2]), vqmovn_s32(v.q[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
[[maybe_unused]] inline void store_int8_first(int8_t* p, size_t n, IntLanes v) {
    int8_t all[16];
    store_int8(all, v);
    memcpy(p, all, n);
}

}  // namespace
}  // namespace awqe
