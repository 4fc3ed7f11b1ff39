// The RMS norm with NEON. Contract: rms_norm_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/norm/rms_norm_f32.h"
#include "native/kernels/norm/rms_norm_lanes.h"
// clang-format on

namespace awqe {

void rms_norm_f32_neon(const float* x, const float* weight, size_t n, float epsilon, float* y) {
    rms_norm_lanes(x, weight, n, epsilon, y);
}

}  // namespace awqe
