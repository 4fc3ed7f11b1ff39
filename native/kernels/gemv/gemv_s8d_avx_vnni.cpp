// gemv_ug.h with AVX-VNNI. The algorithm stands in gemv_avx2.h.
#include "native/kernels/codes/sums_avx_vnni.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {

void gemv_s8d_u2g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<2, DpbusdSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<3, DpbusdSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<4, DpbusdSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<5, DpbusdSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<6, DpbusdSum>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_avx_vnni(const PackedMatrix* w, const QuantizedRows* x, float* y,
                           size_t row_begin, size_t row_end) {
    gemv<8, DpbusdSum>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
