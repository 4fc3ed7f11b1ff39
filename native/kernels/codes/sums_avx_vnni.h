// VPDPBUSD on 256-bit registers as the Sum of gemv_avx2.h and gemm_avx2.h (see sums_avx2.h): four
// products into each int32, at every bit width. Internal linkage throughout.
#pragma once

#if !defined(__AVXVNNI__) || !defined(__GFNI__)
#error "sums_avx_vnni.h needs -mavxvnni, codes_avx2.h beside it -mgfni"
#endif

#include <immintrin.h>

namespace awqe {
namespace {

struct DpbusdSum {
    static constexpr size_t kSteps = 32;
    __m256i lanes;

    inline void clear() { lanes = _mm256_setzero_si256(); }
    inline void add(__m256i codes, __m256i x) { lanes = _mm256_dpbusd_avx_epi32(lanes, codes, x); }
    inline __m256i wide() const { return lanes; }
};

}  // namespace
}  // namespace awqe
