// The layer norm with NEON. Contract: layer_norm_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/norm/layer_norm_f32.h"
#include "native/kernels/norm/layer_norm_lanes.h"
// clang-format on

namespace awqe {

void layer_norm_f32_neon(const float* x, const float* weight, const float* bias, size_t n,
                         float epsilon, float* y) {
    layer_norm_lanes(x, weight, bias, n, epsilon, y);
}

}  // namespace awqe
