// The softmax with AVX-512. Contract: softmax_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_avx512.h"
#include "native/kernels/router/softmax_f32.h"
#include "native/kernels/router/softmax_lanes.h"
// clang-format on

namespace awqe {

void softmax_f32_avx512(const float* x, size_t n, float* p) { softmax_lanes(x, n, p); }

}  // namespace awqe
