// The matrix-matrix product: the matrix-vector product, once per token. Contract: gemm_ug.h.
#include <type_traits>

#include "native/kernels/gemm/gemm_ug.h"
#include "native/kernels/gemv/gemv_ug.h"

namespace awqe {

std::remove_pointer_t<GemvFunction> gemv_s8d_u2g_reference, gemv_s8d_u3g_reference,
    gemv_s8d_u4g_reference, gemv_s8d_u5g_reference, gemv_s8d_u6g_reference, gemv_s8d_u8g_reference;

namespace {

void token_by_token(GemvFunction gemv, const PackedMatrix* w, const QuantizedRows* x, size_t m,
                    float* y, size_t y_stride, size_t row_begin, size_t row_end) {
    for (size_t token = 0; token < m; ++token) {
        QuantizedRows one = *x;
        one.codes += token * x->code_stride;
        one.scales += token * x->group_stride;
        one.sums += token * x->group_stride;
        gemv(w, &one, y + token * y_stride, row_begin, row_end);
    }
}

}  // namespace

void gemm_s8d_u2g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u2g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u3g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u3g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u4g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u4g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u5g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u5g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u6g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u6g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

void gemm_s8d_u8g_reference(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                            size_t y_stride, size_t row_begin, size_t row_end) {
    token_by_token(gemv_s8d_u8g_reference, w, x, m, y, y_stride, row_begin, row_end);
}

}  // namespace awqe
