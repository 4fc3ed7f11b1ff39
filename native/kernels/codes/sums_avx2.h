// How AVX2 adds products of unsigned codes and signed activations: the Sum types of gemv_avx2.h and
// gemm_avx2.h. sums_avx_vnni.h has one more. Internal linkage throughout.
//
// A Sum is a register of partial sums; wide() gives them as eight int32. kSteps says after how many
// registers of products it has to be widened, when every element takes part in every one.
#pragma once

#include <immintrin.h>

namespace awqe {
namespace {

// 2, 3 and 4 bits: VPMADDUBSW gives sums of two products in 16 bits. One element takes 2 * kSteps
// products of at most largest code * 127, and 16 of them at 4 bits make 30,480. A group of the
// matrix-vector product puts 16 into each.
template <int kBits>
struct Int16Sum {
    static constexpr size_t kSteps = kBits == 4 ? 8 : kBits == 3 ? 16 : 32;
    static_assert(2 * kSteps * ((1 << kBits) - 1) * 127 <= 32767);
    __m256i lanes;

    inline void clear() { lanes = _mm256_setzero_si256(); }
    inline void add(__m256i codes, __m256i x) {
        lanes = _mm256_add_epi16(lanes, _mm256_maddubs_epi16(codes, x));
    }
    inline __m256i wide() const { return _mm256_madd_epi16(lanes, _mm256_set1_epi16(1)); }
};

// 8 bits: two products of 255 * 127 would saturate VPMADDUBSW, so both sides go through 16 bits,
// even and odd inputs apart.
struct Int32Sum {
    static constexpr size_t kSteps = 32;
    __m256i lanes;

    inline void clear() { lanes = _mm256_setzero_si256(); }
    inline void add(__m256i codes, __m256i x) {
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
        lanes = _mm256_add_epi32(lanes, _mm256_add_epi32(even, odd));
    }
    inline __m256i wide() const { return lanes; }
};

// 5 and 6 bits: sums of two products fit 16 bits, and little more does.
struct WidenedSum {
    static constexpr size_t kSteps = 32;
    __m256i lanes;

    inline void clear() { lanes = _mm256_setzero_si256(); }
    inline void add(__m256i codes, __m256i x) {
        const __m256i twos = _mm256_maddubs_epi16(codes, x);
        lanes = _mm256_add_epi32(lanes, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
    }
    inline __m256i wide() const { return lanes; }
};

template <int kBits>
struct SumFor {
    using Type = Int16Sum<kBits>;
};
template <>
struct SumFor<5> {
    using Type = WidenedSum;
};
template <>
struct SumFor<6> {
    using Type = WidenedSum;
};
template <>
struct SumFor<8> {
    using Type = Int32Sum;
};

}  // namespace
}  // namespace awqe
