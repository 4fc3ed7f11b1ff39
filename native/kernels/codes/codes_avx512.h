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
// - kShifts: a code of field f is shifted() to the left by kShifts[f] bits, where it lies in its
//   byte: sums of such products are shifted back once a group, and not every code once.
template <int kBits>
struct Codes;

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kShifts[kFields] = {0, 4};

    static inline void shifted(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
        const __m512i v = _mm512_load_si512(low);
        fields[0] = _mm512_and_si512(v, _mm512_set1_epi8(15));
        fields[1] = _mm512_andnot_si512(_mm512_set1_epi8(15), v);
    }
};

template <>
struct Codes<8> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 0;
    static constexpr int kShifts[kFields] = {0, 0};

    static inline void shifted(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
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
    static constexpr int kShifts[kFields] = {0, 2, 4, 6};

    static inline void shifted(const uint8_t* low, const uint8_t*, __m512i (&fields)[kFields]) {
        const __m512i v = _mm512_load_si512(low);
        fields[0] = _mm512_and_si512(v, _mm512_set1_epi8(0x03));
        fields[1] = _mm512_and_si512(v, _mm512_set1_epi8(0x0c));
        fields[2] = _mm512_and_si512(v, _mm512_set1_epi8(0x30));
        fields[3] = _mm512_and_si512(v, _mm512_set1_epi8((char)0xc0));
    }
};

// Those bits of `codes` that are set in kMask, the others from `bits`.
template <int kMask>
inline __m512i choose(__m512i codes, __m512i bits) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)kMask), codes, bits, 0xca);
}

// Those bits of `codes` that are set in kMask, and `bits`.
template <int kMask>
inline __m512i join(__m512i codes, __m512i bits) {
    return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8((char)kMask), bits, 0xea);
}

// A second plane of one bit as a nibble for each of a row's sixteen bytes: bit f belongs to field
// f.
inline __m512i high_nibbles(const uint8_t* high) {
    const __m512i twice =
        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3),
                                 _mm512_castsi256_si512(_mm256_load_si256((const __m256i*)high)));
    return _mm512_and_si512(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4)),
                            _mm512_set1_epi8(15));
}

// For each nibble the byte with bit kFirst of the nibble at bit kFirstTo and bit kSecond at
// kSecondTo.
template <int kFirst, int kFirstTo, int kSecond, int kSecondTo>
inline __m512i move_bits(__m512i nibbles) {
    constexpr auto bits = [](int nibble) {
        return (char)((nibble >> kFirst & 1) << kFirstTo | (nibble >> kSecond & 1) << kSecondTo);
    };
    const __m128i table =
        _mm_setr_epi8(bits(0), bits(1), bits(2), bits(3), bits(4), bits(5), bits(6), bits(7),
                      bits(8), bits(9), bits(10), bits(11), bits(12), bits(13), bits(14), bits(15));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
}

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;
    static constexpr int kShifts[kFields] = {0, 0, 4, 4};

    static inline void shifted(const uint8_t* low, const uint8_t* high,
                               __m512i (&fields)[kFields]) {
        // Two fields at a time, in the halves of a byte.
        const __m512i v = _mm512_load_si512(low);
        const __m512i nibbles = high_nibbles(high);
        const __m512i codes02 = join<0x33>(v, move_bits<0, 2, 2, 6>(nibbles));
        const __m512i codes13 = join<0x33>(_mm512_srli_epi16(v, 2), move_bits<1, 2, 3, 6>(nibbles));
        fields[0] = _mm512_and_si512(codes02, _mm512_set1_epi8(0x07));
        fields[1] = _mm512_and_si512(codes13, _mm512_set1_epi8(0x07));
        fields[2] = _mm512_and_si512(codes02, _mm512_set1_epi8(0x70));
        fields[3] = _mm512_and_si512(codes13, _mm512_set1_epi8(0x70));
    }
};

template <>
struct Codes<5> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 32;
    static constexpr int kShifts[kFields] = {0, 0, 0, 0};

    static inline void shifted(const uint8_t* low, const uint8_t* high,
                               __m512i (&fields)[kFields]) {
        const __m512i first = _mm512_load_si512(low);
        const __m512i second = _mm512_load_si512(low + 64);
        const __m512i nibbles = high_nibbles(high);
        fields[0] = join<15>(first, move_bits<0, 4, 0, 4>(nibbles));
        fields[1] = join<15>(_mm512_srli_epi16(first, 4), move_bits<1, 4, 1, 4>(nibbles));
        fields[2] = join<15>(second, move_bits<2, 4, 2, 4>(nibbles));
        fields[3] = join<15>(_mm512_srli_epi16(second, 4), move_bits<3, 4, 3, 4>(nibbles));
    }
};

template <>
struct Codes<6> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 64;
    static constexpr int kShifts[kFields] = {0, 2, 0, 2};

    static inline void shifted(const uint8_t* low, const uint8_t* high,
                               __m512i (&fields)[kFields]) {
        const __m512i first = _mm512_load_si512(low);
        const __m512i second = _mm512_load_si512(low + 64);
        const __m512i h23 = _mm512_load_si512(high);  // fields 2 and 3 in the upper half of a byte
        const __m512i h01 = _mm512_slli_epi16(h23, 4);
        const __m512i even = _mm512_set1_epi8(0x3f);
        const __m512i odd = _mm512_set1_epi8((char)0xfc);
        fields[0] = _mm512_and_si512(choose<0x0f>(first, h01), even);
        fields[1] = _mm512_and_si512(choose<0x3c>(_mm512_srli_epi16(first, 2), h01), odd);
        fields[2] = _mm512_and_si512(choose<0x0f>(second, h23), even);
        fields[3] = _mm512_and_si512(choose<0x3c>(_mm512_srli_epi16(second, 2), h23), odd);
    }
};

// A run's codes themselves.
template <int kBits>
inline void expand(const uint8_t* low, const uint8_t* high,
                   __m512i (&fields)[Codes<kBits>::kFields]) {
    Codes<kBits>::shifted(low, high, fields);
#pragma GCC unroll 4
    for (int f = 0; f < Codes<kBits>::kFields; ++f) {
        // No bit leaves its byte: those below the code are zero.
        if (Codes<kBits>::kShifts[f] != 0) {
            fields[f] = _mm512_srli_epi16(fields[f], Codes<kBits>::kShifts[f]);
        }
    }
}

}  // namespace
}  // namespace awqe
