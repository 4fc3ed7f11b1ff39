// The contract of the matrix-matrix product: for every row of activations exactly the steps, and so
// exactly the bits, of the matrix-vector product (gemv/gemv_ug.h). Tiles change only the order in
// which rows and tokens are visited.
#pragma once

#include "native/format/layouts.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"

namespace awqe {

// x: m rows. y: float [m, y_stride]; columns [row_begin, row_end) of each of the m rows are
// written.
using GemmFunction = void (*)(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y,
                              size_t y_stride, size_t row_begin, size_t row_end);

}  // namespace awqe
