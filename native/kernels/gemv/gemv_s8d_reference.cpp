// The matrix-vector product, one weight at a time, for every bit width. Contract: gemv_ug.h.
#include <math.h>

#include "native/kernels/gemv/gemv_ug.h"
#include "native/kernels/scalar/codes.h"

namespace awqe {
namespace {

// code_at: the reader of one code (scalar/codes.h).
template <int32_t (*code_at)(const PackedMatrix&, uint64_t row, uint64_t k)>
void gemv(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
          size_t row_end) {
    for (size_t row = row_begin; row < row_end; ++row) {
        float acc = 0.0f;
        for (size_t group = 0; group < w->groups; ++group) {
            const size_t begin = group * w->group_size;
            const size_t end =
                begin + w->group_size < w->columns ? begin + w->group_size : w->columns;
            int32_t dot = 0;
            for (size_t k = begin; k < end; ++k) dot += code_at(*w, row, k) * x->codes[k];
            dot -= zero_point_at(*w, row, group) * x->sums[group];
            acc = fmaf((float)dot, scale_at(*w, row, group) * x->scales[group], acc);
        }
        y[row] = acc;
    }
}

}  // namespace

void gemv_s8d_u2g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u2>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u3g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u3>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u4g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u4>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u5g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u5>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u6g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u6>(w, x, y, row_begin, row_end);
}

void gemv_s8d_u8g_reference(const PackedMatrix* w, const QuantizedRows* x, float* y,
                            size_t row_begin, size_t row_end) {
    gemv<code_u8>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
