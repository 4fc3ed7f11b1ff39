// gemm_ug.h on cores with SMMLA. The algorithm stands in gemm_neon.h, the register tile
// in tile_neon_i8mm.h.
#include "native/kernels/gemm/tile_neon_i8mm.h"

namespace awqe {

void gemm_s8d_u2g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<2, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<3, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<4, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<5, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<6, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_neon_i8mm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    gemm<8, I8mmTile>(w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
