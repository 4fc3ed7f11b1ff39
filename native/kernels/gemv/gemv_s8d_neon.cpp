// gemv_ug.h on armv8.0: SMLAL. The algorithm stands in gemv_neon.h.
#include "native/kernels/gemv/gemv_neon.h"

namespace awqe {

void gemv_s8d_u2g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<2, Int16Sum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<3, Int16Sum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<4, Int16Sum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<5, Int16Sum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<6, Int32Sum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<8, Int32Sum>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
