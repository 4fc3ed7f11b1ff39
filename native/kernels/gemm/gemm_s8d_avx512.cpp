// gemm_ug.h with AVX-512 VNNI. The algorithm stands in gemm_avx512.h.
#include "native/kernels/gemm/gemm_avx512.h"

namespace awqe {

void gemm_s8d_u2g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<2>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<3>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<4>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<5>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<6>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_avx512(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<8>(w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
