// gemv_ug.h with AVX2. The algorithm stands in gemv_avx2.h.
#include "native/kernels/codes/sums_avx2.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {

void gemv_s8d_u2g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<2, SumFor<2>::Type>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<3, SumFor<3>::Type>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<4, SumFor<4>::Type>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<5, SumFor<5>::Type>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<6, SumFor<6>::Type>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<8, SumFor<8>::Type>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
