// The matrix-matrix product at 8 bits: the matrix-vector product, once per token. Contract:
// gemm_ug.h.
#include "native/kernels/gemm/gemm_ug.h"

namespace awqe {

void gemv_s8d_u8g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end);

void gemm_s8d_u8g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    for (size_t token = 0; token < m; ++token) {
        QuantizedRows one = *x;
        one.codes += token * x->code_stride;
        one.scales += token * x->group_stride;
        one.sums += token * x->group_stride;
        gemv_s8d_u8g_reference(w, &one, y + token * y_stride, row_begin, row_end);
    }
}

}  // namespace awqe
