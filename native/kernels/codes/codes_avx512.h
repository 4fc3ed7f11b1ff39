// Expands the packed codes of r4k32 (native/format/FORMAT.md, section 3) to unsigned bytes in
// AVX-512 registers, one row of a block per 128-bit lane. Owns the bit patterns only: no sums, no
// scales, no bounds. Internal linkage throughout, because several kernel files include it.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__) || !defined(__AVX512VNNI__)
#error "codes_avx512.h needs -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace awqe {
namespace {

// Codes<bits>: a run is the smallest piece of a block whose bytes do not mix with others'.
// - kRun: inputs of a run.
// - kFields: registers that a run expands to; register f holds inputs 16 f ... 16 f + 15 of 4 rows.
// - kLowBytes: bytes of a run in the first plane.
// - kHighBytes: in the second plane, which 3, 5 and 6 bits have.
template <int kBits>
struct Codes;

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
        const __m512i mask = _mm512_set1_epi8(15);
        const __m512i v = _mm512_load_si512(low);
        fields[0] = _mm512_and_si512(v, mask);
        fields[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
    }
};

template <>
struct Codes<8> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
        const __m512i rows01 = _mm512_load_si512(low);  // two lanes a row
        const __m512i rows23 = _mm512_load_si512(low + 64);
        fields[0] = _mm512_shuffle_i64x2(rows01, rows23, 0x88);
        fields[1] = _mm512_shuffle_i64x2(rows01, rows23, 0xdd);
    }
};

template <>
struct Codes<2> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
        const __m512i mask = _mm512_set1_epi8(3);
        const __m512i v = _mm512_load_si512(low);
        fields[0] = _mm512_and_si512(v, mask);
        fields[1] = _mm512_and_si512(_mm512_srli_epi16(v, 2), mask);
        fields[2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
        fields[3] = _mm512_and_si512(_mm512_srli_epi16(v, 6), mask);
    }
};

// Codes with those bits of `high` added that are set in kMask.
template <int kMask>
inline __m512i join(__m512i codes, __m512i high) {
    return _mm512_ternarylogic_epi32(codes, high, _mm512_set1_epi8(kMask), 0xf8);  // a | (b & c)
}

// A second plane of one bit. Eight bytes of a row, then the same shifted right by four: bit f of
// every byte belongs to field f.
inline __m512i high_bits(const uint8_t* high) {
    const __m512i twice =
        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3),
                                 _mm512_castsi256_si512(_mm256_load_si256((const __m256i*)high)));
    return _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4));
}

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;

    static inline void expand(const uint8_t* low, const uint8_t* high, __m512i (&fields)[kFields]) {
        Codes<2>::expand(low, nullptr, fields);
        const __m512i h = high_bits(high);
        fields[0] = join<4>(fields[0], _mm512_slli_epi16(h, 2));
        fields[1] = join<4>(fields[1], _mm512_slli_epi16(h, 1));
        fields[2] = join<4>(fields[2], h);
        fields[3] = join<4>(fields[3], _mm512_srli_epi16(h, 1));
    }
};

// The low planes of 5 and 6 bits: 64 inputs are two runs of 4 bits.
inline void expand_nibbles(const uint8_t* low, __m512i (&fields)[4]) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i first = _mm512_load_si512(low);
    const __m512i second = _mm512_load_si512(low + 64);
    fields[0] = _mm512_and_si512(first, mask);
    fields[1] = _mm512_and_si512(_mm512_srli_epi16(first, 4), mask);
    fields[2] = _mm512_and_si512(second, mask);
    fields[3] = _mm512_and_si512(_mm512_srli_epi16(second, 4), mask);
}

template <>
struct Codes<5> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 32;

    static inline void expand(const uint8_t* low, const uint8_t* high, __m512i (&fields)[kFields]) {
        expand_nibbles(low, fields);
        const __m512i h = high_bits(high);
        fields[0] = join<16>(fields[0], _mm512_slli_epi16(h, 4));
        fields[1] = join<16>(fields[1], _mm512_slli_epi16(h, 3));
        fields[2] = join<16>(fields[2], _mm512_slli_epi16(h, 2));
        fields[3] = join<16>(fields[3], _mm512_slli_epi16(h, 1));
    }
};

template <>
struct Codes<6> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 64;

    static inline void expand(const uint8_t* low, const uint8_t* high, __m512i (&fields)[kFields]) {
        expand_nibbles(low, fields);
        const __m512i h = _mm512_load_si512(high);
        fields[0] = join<0x30>(fields[0], _mm512_slli_epi16(h, 4));
        fields[1] = join<0x30>(fields[1], _mm512_slli_epi16(h, 2));
        fields[2] = join<0x30>(fields[2], h);
        fields[3] = join<0x30>(fields[3], _mm512_srli_epi16(h, 2));
    }
};

}  // namespace
}  // namespace awqe
