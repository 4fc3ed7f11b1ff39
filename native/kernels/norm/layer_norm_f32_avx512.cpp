// The layer norm with AVX-512. Contract: layer_norm_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_avx512.h"
#include "native/kernels/norm/layer_norm_f32.h"
#include "native/kernels/norm/layer_norm_lanes.h"
// clang-format on

namespace awqe {

void layer_norm_f32_avx512(const float* x, const float* weight, const float* bias, size_t n,
                           float epsilon, float* y) {
    layer_norm_lanes(x, weight, bias, n, epsilon, y);
}

}  // namespace awqe
