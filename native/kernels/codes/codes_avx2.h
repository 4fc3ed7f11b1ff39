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
// - kRun: inputs of a run.
// - kFields: registers that 2 rows of a run expand to; register f holds inputs 16 f ... 16 f + 15.
// - kLowBytes: bytes of a run in the first plane.
// - kHighBytes: in the second plane, which 3, 5 and 6 bits have.
// - High: a run's bits of the second plane, for all four rows.
// - expand: rows 2 * pair and 2 * pair + 1 of the run at low.
template <int kBits>
struct Codes;

// There is no second plane.
struct NoHighPlane {
    explicit NoHighPlane(const uint8_t*) {}
};

// Every CPU with VPDPBUSD on 256-bit registers has GF2P8AFFINEQB too: it moves the bits of a byte
// anywhere, in one step instead of a shift and a mask.
#if defined(__GFNI__)
// A matrix of GF2P8AFFINEQB: from[i] is the bit that becomes bit i, or -1 for zero.
constexpr long long bit_matrix(const int (&from)[8]) {
    unsigned long long matrix = 0;
    for (int i = 0; i < 8; ++i) {
        if (from[i] >= 0) matrix |= 1ull << from[i] << (8 * (7 - i));
    }
    return (long long)matrix;
}

// Bytes with their bits moved: by `first` in the lower eight of a lane, by `second` in the others.
inline __m256i move_bits(__m256i bytes, long long first, long long second) {
    return _mm256_gf2p8affine_epi64_epi8(bytes, _mm256_setr_epi64x(first, second, first, second),
                                         0);
}
#endif

// Bits kFirst ... kFirst + kCount - 1 of every byte.
template <int kFirst, int kCount>
inline __m256i bits_of(__m256i bytes) {
#if defined(__GFNI__)
    constexpr int kNone = -1;
    constexpr long long kMatrix =
        bit_matrix({kFirst, kFirst + 1, kCount > 2 ? kFirst + 2 : kNone,
                    kCount > 3 ? kFirst + 3 : kNone, kNone, kNone, kNone, kNone});
    static_assert(kCount >= 2 && kCount <= 4);
    return move_bits(bytes, kMatrix, kMatrix);
#else
    return _mm256_and_si256(_mm256_srli_epi16(bytes, kFirst), _mm256_set1_epi8((1 << kCount) - 1));
#endif
}

template <>
struct Codes<4> {
    static constexpr size_t kRun = 32;
    static constexpr int kFields = 2;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 0;
    using High = NoHighPlane;

    static inline void expand(const uint8_t* low, const High&, size_t pair,
                              __m256i (&fields)[kFields]) {
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        fields[0] = _mm256_and_si256(v, _mm256_set1_epi8(15));
        fields[1] = bits_of<4, 4>(v);
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
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        fields[0] = _mm256_and_si256(v, _mm256_set1_epi8(3));
        fields[1] = bits_of<2, 2>(v);
        fields[2] = bits_of<4, 2>(v);
        fields[3] = bits_of<6, 2>(v);
    }
};

template <>
struct Codes<3> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 64;
    static constexpr size_t kHighBytes = 32;

#if defined(__GFNI__)
    struct High {
        __m256i bytes[2];  // two rows' eight each, twice: first for their low nibbles, then for the
                           // others

        explicit inline High(const uint8_t* high) {
            const __m256i rows = _mm256_load_si256((const __m256i*)high);
            bytes[0] = _mm256_permute4x64_epi64(rows, 0x50);
            bytes[1] = _mm256_permute4x64_epi64(rows, 0xfa);
        }

        // Bits 0 and 2 (1 and 3) of every nibble at bits 2 and 6.
        inline __m256i fields02(size_t pair) const {
            return move_bits(bytes[pair], bit_matrix({-1, -1, 0, -1, -1, -1, 2, -1}),
                             bit_matrix({-1, -1, 4, -1, -1, -1, 6, -1}));
        }
        inline __m256i fields13(size_t pair) const {
            return move_bits(bytes[pair], bit_matrix({-1, -1, 1, -1, -1, -1, 3, -1}),
                             bit_matrix({-1, -1, 5, -1, -1, -1, 7, -1}));
        }
    };

    // Bits 2, 3, 6 and 7 of every byte at bits 0, 1, 4 and 5.
    static inline __m256i low13(__m256i v) {
        constexpr long long kMatrix = bit_matrix({2, 3, -1, -1, 6, 7, -1, -1});
        return move_bits(v, kMatrix, kMatrix);
    }
#else
    struct High {
        __m256i nibbles[2];  // bit f of byte j: of field f, input 16 f + j; two rows each

        explicit inline High(const uint8_t* high) {
            // A row's eight bytes hold two nibbles each; rows 0, 2 | 1, 3.
            const __m256i bytes =
                _mm256_permute4x64_epi64(_mm256_load_si256((const __m256i*)high), 0xd8);
            const __m256i first = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
            const __m256i second = bits_of<4, 4>(bytes);
            nibbles[0] = _mm256_unpacklo_epi64(first, second);
            nibbles[1] = _mm256_unpackhi_epi64(first, second);
        }

        // Bits 0 and 2 (1 and 3) of every nibble at bits 2 and 6.
        inline __m256i fields02(size_t pair) const {
            const __m256i table =
                _mm256_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4,
                                 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68);
            return _mm256_shuffle_epi8(table, nibbles[pair]);
        }
        inline __m256i fields13(size_t pair) const {
            const __m256i table =
                _mm256_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68, 0, 0, 4, 4,
                                 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68);
            return _mm256_shuffle_epi8(table, nibbles[pair]);
        }
    };

    // Bits 2, 3, 6 and 7 of every byte at bits 0, 1, 4 and 5.
    static inline __m256i low13(__m256i v) {
        return _mm256_and_si256(_mm256_srli_epi16(v, 2), _mm256_set1_epi8(0x33));
    }
#endif

    static inline void expand(const uint8_t* low, const High& high, size_t pair,
                              __m256i (&fields)[kFields]) {
        // Two fields at a time, in the halves of a byte.
        const __m256i v = _mm256_load_si256((const __m256i*)(low + 32 * pair));
        const __m256i codes02 =
            _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi8(0x33)), high.fields02(pair));
        const __m256i codes13 = _mm256_or_si256(low13(v), high.fields13(pair));
        const __m256i mask = _mm256_set1_epi8(7);
        fields[0] = _mm256_and_si256(codes02, mask);
        fields[1] = _mm256_and_si256(codes13, mask);
        fields[2] = bits_of<4, 3>(codes02);
        fields[3] = bits_of<4, 3>(codes13);
    }
};

// The low planes of 5 and 6 bits: 64 inputs are two runs of 4 bits.
inline void expand_nibbles(const uint8_t* low, size_t pair, __m256i (&fields)[4]) {
    const __m256i first = _mm256_load_si256((const __m256i*)(low + 32 * pair));
    const __m256i second = _mm256_load_si256((const __m256i*)(low + 64 + 32 * pair));
    fields[0] = _mm256_and_si256(first, _mm256_set1_epi8(15));
    fields[1] = bits_of<4, 4>(first);
    fields[2] = _mm256_and_si256(second, _mm256_set1_epi8(15));
    fields[3] = bits_of<4, 4>(second);
}

template <>
struct Codes<5> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 32;

#if defined(__GFNI__)
    struct High : Codes<3>::High {
        using Codes<3>::High::High;

        // The bit of a field at bit 4.
        template <int kField>
        inline __m256i field(size_t pair) const {
            return move_bits(bytes[pair], bit_matrix({-1, -1, -1, -1, kField, -1, -1, -1}),
                             bit_matrix({-1, -1, -1, -1, 4 + kField, -1, -1, -1}));
        }
    };
#else
    struct High : Codes<3>::High {
        using Codes<3>::High::High;

        // The bit of a field at bit 4.
        template <int kField>
        inline __m256i field(size_t pair) const {
            constexpr auto bit = [](int nibble) { return (char)((nibble >> kField & 1) << 4); };
            const __m128i table =
                _mm_setr_epi8(bit(0), bit(1), bit(2), bit(3), bit(4), bit(5), bit(6), bit(7),
                              bit(8), bit(9), bit(10), bit(11), bit(12), bit(13), bit(14), bit(15));
            return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles[pair]);
        }
    };
#endif

    static inline void expand(const uint8_t* low, const High& high, size_t pair,
                              __m256i (&fields)[kFields]) {
        expand_nibbles(low, pair, fields);
        fields[0] = _mm256_or_si256(fields[0], high.template field<0>(pair));
        fields[1] = _mm256_or_si256(fields[1], high.template field<1>(pair));
        fields[2] = _mm256_or_si256(fields[2], high.template field<2>(pair));
        fields[3] = _mm256_or_si256(fields[3], high.template field<3>(pair));
    }
};

template <>
struct Codes<6> {
    static constexpr size_t kRun = 64;
    static constexpr int kFields = 4;
    static constexpr size_t kLowBytes = 128;
    static constexpr size_t kHighBytes = 64;

    struct High {
        __m256i rows[2];  // two rows' sixteen bytes each, laid out as 2-bit codes

        explicit inline High(const uint8_t* high)
            : rows{_mm256_load_si256((const __m256i*)high),
                   _mm256_load_si256((const __m256i*)(high + 32))} {}
    };

    static inline void expand(const uint8_t* low, const High& high, size_t pair,
                              __m256i (&fields)[kFields]) {
        expand_nibbles(low, pair, fields);
        const __m256i h = high.rows[pair];
        const __m256i mask = _mm256_set1_epi8(0x30);
        const auto join = [mask](__m256i codes, __m256i bits) {
            return _mm256_or_si256(codes, _mm256_and_si256(bits, mask));
        };
        fields[0] = join(fields[0], _mm256_slli_epi16(h, 4));
        fields[1] = join(fields[1], _mm256_slli_epi16(h, 2));
        fields[2] = join(fields[2], h);
        fields[3] = join(fields[3], _mm256_srli_epi16(h, 2));
    }
};

}  // namespace
}  // namespace awqe
