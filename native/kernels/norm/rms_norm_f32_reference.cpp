// The RMS norm in plain loops. Contract: rms_norm_f32.h; arithmetic: native/ARITHMETIC.md,
// section 4.
#include <math.h>

#include "native/kernels/norm/rms_norm_f32.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {

void rms_norm_f32_reference(const float* x, const float* weight, size_t n, float epsilon,
                            float* y) {
    float lane[kLanes] = {};
    for (size_t i = 0; i < n; ++i) lane[i % kLanes] = fmaf(x[i], x[i], lane[i % kLanes]);
    const float mean = tree_sum(lane) / (float)n;
    const float inverse = 1.0f / sqrtf(mean + epsilon);
    for (size_t i = 0; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

}  // namespace awqe
