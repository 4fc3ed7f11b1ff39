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
    const float square = tree_sum(lane) / (float)n + epsilon;
    // square * 0 makes NaN of a sum that has overflowed, and changes nothing otherwise.
    const float inverse = fmaf(square, 0.0f, 1.0f / sqrtf(square));
    for (size_t i = 0; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

}  // namespace awqe
