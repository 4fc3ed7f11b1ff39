// gemm_ug.h on armv8.0: SMLAL. The algorithm stands in gemm_neon.h, the register tile in
// tile_neon.h.
#include "native/kernels/gemm/tile_neon.h"

namespace awqe {

void gemm_s8d_u2g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<2, NeonTile<Int16Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<3, NeonTile<Int16Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<4, NeonTile<Int16Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<5, NeonTile<Int16Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<6, NeonTile<Int32Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_neon(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                       size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<8, NeonTile<Int32Sum>>(w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
