// gemv_ug.h with AVX-512 VNNI. The algorithm stands in gemv_avx512.h.
#include "native/kernels/gemv/gemv_avx512.h"

namespace awqe {

void gemv_s8d_u2g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<2>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<3>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<4>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<5>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<6>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_avx512(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                         size_t row_end) {
    gemv<8>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
