// Expands the packed codes of r4k32 (native/format/FORMAT.md, section 3) to unsigned bytes in AVX2
// registers, one row of a block per 128-bit lane. Owns the bit patterns only: no sums, no scales,
// no bounds. Internal linkage throughout, because kernel files of two instruction sets include it.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "codes_avx2.h needs -mavx2 -mfma -mf16c"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace awqe {
namespace {

// Codes<bits>: a run is the smallest piece of a block whose bytes do not mix with others'.
//   kRun        inputs of a run
//   kFields     registers that two rows of a run expand to; register f holds inputs 16 f ... 16 f +
//   15 kLowBytes   bytes of a run in the first plane; kHighBytes: in the second, 3 bits only expand
//   rows 2 * pair and 2 * pair + 1 of the run at low (and high)
template <int kBits>
struct Codes;

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, size_t pair,
                              __m256i (&fields)[kFields]) {
        const __m256i mask = _mm256_set1_epi8(15);
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        fields[0] = _mm256_and_si256(v, mask);
        fields[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
    }
};

template <>
struct Codes<8> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, size_t pair,
                              __m256i (&fields)[kFields]) {
        const __m256i first = _mm256_load_si256((const __m256i*)(low + 64 * pair));
        const __m256i second = _mm256_load_si256((const __m256i*)(low + 64 * pair + 32));
        fields[0] = _mm256_permute2x128_si256(first, second, 0x20);
        fields[1] = _mm256_permute2x128_si256(first, second, 0x31);
    }
};

template <>
struct Codes<2> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;

    static inline void expand(const uint8_t* low, const uint8_t*, size_t pair,
                              __m256i (&fields)[kFields]) {
        const __m256i mask = _mm256_set1_epi8(3);
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        fields[0] = _mm256_and_si256(v, mask);
        fields[1] = _mm256_and_si256(_mm256_srli_epi16(v, 2), mask);
        fields[2] = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
        fields[3] = _mm256_and_si256(_mm256_srli_epi16(v, 6), mask);
    }
};

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;

    static inline void expand(const uint8_t* low, const uint8_t* high, size_t pair,
                              __m256i (&fields)[kFields]) {
        // Eight bytes of a row, then the same shifted right by four: bit f of every byte belongs to
        // field f.
        const __m256i twice = _mm256_permute4x64_epi64(
            _mm256_castsi128_si256(_mm_load_si128((const __m128i*)(high + 16 * pair))), 0x50);
        const __m256i h = _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 4, 0, 4)),
                                           _mm256_set1_epi8(15));
        // Two fields at a time, in the halves of a byte: a table puts bits 0 and 2 (1 and 3) of its
        // index at bits 2 and 6.
        const __m256i table02 =
            _mm256_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64,
                             68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68);
        const __m256i table13 =
            _mm256_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68, 0, 0, 4, 4, 0,
                             0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68);
        const __m256i low_bits = _mm256_set1_epi8(0x33);
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        const __m256i codes02 =
            _mm256_or_si256(_mm256_and_si256(v, low_bits), _mm256_shuffle_epi8(table02, h));
        const __m256i codes13 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, 2), low_bits),
                                                _mm256_shuffle_epi8(table13, h));
        const __m256i mask = _mm256_set1_epi8(7);
        fields[0] = _mm256_and_si256(codes02, mask);
        fields[1] = _mm256_and_si256(codes13, mask);
        fields[2] = _mm256_and_si256(_mm256_srli_epi16(codes02, 4), mask);
        fields[3] = _mm256_and_si256(_mm256_srli_epi16(codes13, 4), mask);
    }
};

}  // namespace
}  // namespace awqe
