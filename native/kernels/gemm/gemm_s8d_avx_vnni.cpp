// gemm_ug.h with AVX-VNNI. The algorithm stands in gemm_avx2.h.
#include "native/kernels/codes/sums_avx_vnni.h"
#include "native/kernels/gemm/gemm_avx2.h"

namespace awqe {

void gemm_s8d_u2g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<2, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<3, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<4, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<5, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<6, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                           size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<8, DpbusdSum, 6>(w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
