// The contract of the matrix-vector product, for every bit width and instruction set.
//
//   y[n] = sum over groups, in ascending order, of   fma(float(D), s_w * s_x, acc)
//   D    = sum of code * x over the group - zero_point * sum of x over the group       (int32,
//   exact)
//
// n from row_begin (a multiple of 4) up to row_end (a multiple of 4, or w->rows). No allocation, no
// threads, no state.
#pragma once

#include "native/format/layouts.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"

namespace awqe {

// y: float [w->rows]; only [row_begin, row_end) is written. x holds one row quantised with w's
// group size.
using GemvFunction = void (*)(const PackedMatrix* w, const QuantizedRows* x, float* y,
                              size_t row_begin, size_t row_end);

}  // namespace awqe
