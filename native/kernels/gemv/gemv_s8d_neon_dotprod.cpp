// gemv_ug.h on cores with SDOT. The algorithm stands in gemv_neon.h.
#include "native/kernels/codes/sums_neon_dotprod.h"
#include "native/kernels/gemv/gemv_neon.h"

namespace awqe {

void gemv_s8d_u2g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<2, SdotSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<3, SdotSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<4, SdotSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<5, SdotSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<6, SdotSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<8, SdotSum>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
