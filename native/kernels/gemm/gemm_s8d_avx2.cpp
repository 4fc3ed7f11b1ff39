// gemm_ug.h with AVX2. The algorithm stands in gemm_avx2.h.
#include "native/kernels/codes/sums_avx2.h"
#include "native/kernels/gemm/gemm_avx2.h"

namespace awqe {

void gemm_s8d_u2g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<2, SumFor<2>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<3, SumFor<3>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<4, SumFor<4>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<5, SumFor<5>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<6, SumFor<6>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_avx2(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<8, SumFor<8>::Type, 4>(w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
