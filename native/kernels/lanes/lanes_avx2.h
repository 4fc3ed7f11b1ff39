// Sixteen float lanes in two AVX2 registers; lanes/README.md says what each function gives.
// Included once per kernel file.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "lanes_avx2.h needs -mavx2 -mfma -mf16c"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace awqe {
namespace {

[[maybe_unused]] constexpr size_t kRegisterBytes = size_t{16} * 32;

struct Lanes {
    __m256 low;   // lanes 0 ... 7
    __m256 high;  // lanes 8 ... 15
};

struct IntLanes {
    __m256i low;
    __m256i high;
};

[[maybe_unused]] inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
[[maybe_unused]] inline Lanes broadcast(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
[[maybe_unused]] inline Lanes load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
[[maybe_unused]] inline Lanes load_each_four_times(const float* p) {
    return {_mm256_set_m128(_mm_broadcast_ss(p + 1), _mm_broadcast_ss(p)),
            _mm256_set_m128(_mm_broadcast_ss(p + 3), _mm_broadcast_ss(p + 2))};
}
[[maybe_unused]] inline void store(float* p, Lanes v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}
// Through the stack: a masked load would do, but ends of rows are rare and this is plain.
[[maybe_unused]] inline Lanes load_first(const float* p, size_t n) {
    float all[16] = {};
    memcpy(all, p, n * sizeof(float));
    return load(all);
}
[[maybe_unused]] inline void store_first(float* p, size_t n, Lanes v) {
    float all[16];
    store(all, v);
    memcpy(p, all, n * sizeof(float));
}
[[maybe_unused]] inline Lanes load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
[[maybe_unused]] inline Lanes load_half_first(const uint16_t* p, size_t n) {
    uint16_t all[16] = {};
    memcpy(all, p, n * sizeof(uint16_t));
    return load_half(all);
}
[[maybe_unused]] inline Lanes load_int8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
[[maybe_unused]] inline Lanes load_int8_first(const int8_t* p, size_t n) {
    int8_t all[16] = {};
    memcpy(all, p, n);
    return load_int8(all);
}
[[maybe_unused]] inline void store_half(uint16_t* p, Lanes v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
}
[[maybe_unused]] inline void store_half_first(uint16_t* p, size_t n, Lanes v) {
    uint16_t all[16];
    store_half(all, v);
    memcpy(p, all, n * sizeof(uint16_t));
}
[[maybe_unused]] inline Lanes add(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes sub(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes mul(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes div(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
[[maybe_unused]] inline Lanes fnma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
[[maybe_unused]] inline Lanes max(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes min(Lanes a, Lanes b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
[[maybe_unused]] inline Lanes negate(Lanes a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(sign, a.low), _mm256_xor_ps(sign, a.high)};
}
[[maybe_unused]] inline Lanes zero_where_less(Lanes value, Lanes x, Lanes limit) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_LT_OQ), value.low),
            _mm256_andnot_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_LT_OQ), value.high)};
}
// The low bits of `shifted` are n; 2^n by its exponent field.
[[maybe_unused]] inline Lanes power_of_two(Lanes shifted) {
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i low = _mm256_add_epi32(_mm256_castps_si256(shifted.low), bias);
    const __m256i high = _mm256_add_epi32(_mm256_castps_si256(shifted.high), bias);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 23))};
}
// The first two levels of the tree: lane i + 8, then lane i + 4.
[[maybe_unused]] inline __m128 four_lanes(Lanes v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
[[maybe_unused]] inline float sum(Lanes v) {
    const __m128 four = four_lanes(v);
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// The last two levels of four trees at once: lane i + 2, then lane i + 1.
[[maybe_unused]] inline void sum_four(float* out, Lanes a, Lanes b, Lanes c, Lanes d) {
    const __m128 fa = four_lanes(a), fb = four_lanes(b), fc = four_lanes(c), fd = four_lanes(d);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(fa, fb), _mm_movehl_ps(fb, fa));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(fc, fd), _mm_movehl_ps(fd, fc));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}
[[maybe_unused]] inline float largest(Lanes v) {
    const __m256 eight = _mm256_max_ps(v.low, v.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
[[maybe_unused]] inline IntLanes int_zero() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
[[maybe_unused]] inline IntLanes int_add(IntLanes a, IntLanes b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
[[maybe_unused]] inline IntLanes magnitude_bits(Lanes v) {
    const __m256i all_but_sign = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(v.low), all_but_sign),
            _mm256_and_si256(_mm256_castps_si256(v.high), all_but_sign)};
}
[[maybe_unused]] inline IntLanes int_max(IntLanes a, IntLanes b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
[[maybe_unused]] inline int32_t int_largest(IntLanes v) {
    const __m256i eight = _mm256_max_epi32(v.low, v.high);
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
[[maybe_unused]] inline int32_t int_sum(IntLanes v) {
    const __m256i eight = _mm256_add_epi32(v.low, v.high);
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
// The conversion rounds by the mode in MXCSR, which the library leaves at nearest even.
[[maybe_unused]] inline IntLanes round_to_int(Lanes v) {
    return {_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)};
}
[[maybe_unused]] inline void store_int8(int8_t* p, IntLanes v) {
    // packs works inside 128-bit lanes: 0-3 8-11 | 4-7 12-15, put in order by the permutation.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                  _mm256_extracti128_si256(words, 1)));
}
[[maybe_unused]] inline void store_int8_first(int8_t* p, size_t n, IntLanes v) {
    int8_t all[16];
    store_int8(all, v);
    memcpy(p, all, n);
}

}  // namespace
}  // namespace awqe
