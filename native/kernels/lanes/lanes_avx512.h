// Sixteen float lanes in one AVX-512 register; lanes/README.md says what each function gives.
// Included once per kernel file.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__)
#error "lanes_avx512.h needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace awqe {
namespace {

[[maybe_unused]] constexpr size_t kRegisterBytes = size_t{32} * 64;

struct Lanes {
    __m512 v;
};

struct IntLanes {
    __m512i v;
};

[[maybe_unused]] inline __mmask16 first_mask(size_t n) { return (__mmask16)((1u << n) - 1); }
[[maybe_unused]] inline Lanes zero() { return {_mm512_setzero_ps()}; }
[[maybe_unused]] inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
[[maybe_unused]] inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
[[maybe_unused]] inline Lanes load_each_four_times(const float* p) {
    const __m512i lane_of = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return {_mm512_permutexvar_ps(lane_of, _mm512_castps128_ps512(_mm_loadu_ps(p)))};
}
[[maybe_unused]] inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
[[maybe_unused]] inline Lanes load_first(const float* p, size_t n) {
    return {_mm512_maskz_loadu_ps(first_mask(n), p)};
}
[[maybe_unused]] inline void store_first(float* p, size_t n, Lanes a) {
    _mm512_mask_storeu_ps(p, first_mask(n), a.v);
}
[[maybe_unused]] inline Lanes load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
[[maybe_unused]] inline Lanes load_half_first(const uint16_t* p, size_t n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_mask(n), p))};
}
[[maybe_unused]] inline Lanes load_int8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
[[maybe_unused]] inline Lanes load_int8_first(const int8_t* p, size_t n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_mask(n), p)))};
}
[[maybe_unused]] inline void store_half(uint16_t* p, Lanes a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
[[maybe_unused]] inline void store_half_first(uint16_t* p, size_t n, Lanes a) {
    _mm256_mask_storeu_epi16(p, first_mask(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
[[maybe_unused]] inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
[[maybe_unused]] inline Lanes fnma(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
[[maybe_unused]] inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
[[maybe_unused]] inline Lanes negate(Lanes a) {
    return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))};
}
[[maybe_unused]] inline Lanes zero_where_less(Lanes value, Lanes x, Lanes limit) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), value.v)};
}
// The low bits of `shifted` are n; 2^n by its exponent field.
[[maybe_unused]] inline Lanes power_of_two(Lanes shifted) {
    const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// The first two levels of the tree: lane i + 8, then lane i + 4.
[[maybe_unused]] inline __m128 four_lanes(Lanes a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
[[maybe_unused]] inline float sum(Lanes a) {
    const __m128 four = four_lanes(a);
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Four trees at once: two vectors share the level 8, all four share the levels 4, 2 and 1.
[[maybe_unused]] inline void sum_four(float* out, Lanes a, Lanes b, Lanes c, Lanes d) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44),   // a0 a1 b0 b1
                                    _mm512_shuffle_f32x4(a.v, b.v, 0xee));  // a2 a3 b2 b3
    const __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
    const __m512 four =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
    const __m512i first_of_lane =
        _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_lane, one)));
}
[[maybe_unused]] inline float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
[[maybe_unused]] inline IntLanes int_zero() { return {_mm512_setzero_si512()}; }
[[maybe_unused]] inline IntLanes int_add(IntLanes a, IntLanes b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
[[maybe_unused]] inline IntLanes magnitude_bits(Lanes a) {
    return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))};
}
[[maybe_unused]] inline IntLanes int_max(IntLanes a, IntLanes b) {
    return {_mm512_max_epi32(a.v, b.v)};
}
[[maybe_unused]] inline int32_t int_largest(IntLanes a) {
    const __m256i eight =
        _mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
[[maybe_unused]] inline int32_t int_sum(IntLanes a) {
    const __m256i eight =
        _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
// The conversion rounds by the mode in MXCSR, which the library leaves at nearest even.
[[maybe_unused]] inline IntLanes round_to_int(Lanes a) { return {_mm512_cvtps_epi32(a.v)}; }
[[maybe_unused]] inline void store_int8(int8_t* p, IntLanes a) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v));
}
[[maybe_unused]] inline void store_int8_first(int8_t* p, size_t n, IntLanes a) {
    _mm_mask_storeu_epi8(p, first_mask(n), _mm512_cvtsepi32_epi8(a.v));
}

}  // namespace
}  // namespace awqe
