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
//   15 kLowBytes   bytes of a run in the first plane; kHighBytes: in the second, 3 bits only High
//   a run's bits of the second plane, for all four rows expand      rows 2 * pair and 2 * pair + 1
//   of the run at low
template <int kBits>
struct Codes;

// There is no second plane.
struct NoHighPlane {
    explicit NoHighPlane(const uint8_t*) {}
};

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    using High = NoHighPlane;

    static inline void expand(const uint8_t* low, const High&, size_t pair,
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
    using High = NoHighPlane;

    static inline void expand(const uint8_t* low, const High&, size_t pair,
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
    using High = NoHighPlane;

    static inline void expand(const uint8_t* low, const High&, size_t pair,
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

    struct High {
        __m256i nibbles[2];  // bit f of byte j: of field f, input 16 f + j; two rows each

        explicit inline High(const uint8_t* high) {
            // A row's eight bytes hold two nibbles each; rows 0, 2 | 1, 3.
            const __m256i bytes =
                _mm256_permute4x64_epi64(_mm256_load_si256((const __m256i*)high), 0xd8);
            const __m256i mask = _mm256_set1_epi8(15);
            const __m256i first = _mm256_and_si256(bytes, mask);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
            nibbles[0] = _mm256_unpacklo_epi64(first, second);
            nibbles[1] = _mm256_unpackhi_epi64(first, second);
        }
    };

    static inline void expand(const uint8_t* low, const High& high, size_t pair,
                              __m256i (&fields)[kFields]) {
        const __m256i h = high.nibbles[pair];
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
