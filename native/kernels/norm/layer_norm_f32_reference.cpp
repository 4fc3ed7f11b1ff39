// The layer norm in plain loops. Contract: layer_norm_f32.h; arithmetic: native/ARITHMETIC.md,
// section 4.
#include <math.h>

#include "native/kernels/norm/layer_norm_f32.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {

void layer_norm_f32_reference(const float* x, const float* weight, const float* bias, size_t n,
                              float epsilon, float* y) {
    float total[kLanes] = {};
    for (size_t i = 0; i < n; ++i) total[i % kLanes] += x[i];
    const float mean = tree_sum(total) / (float)n;
    float squares[kLanes] = {};
    for (size_t i = 0; i < n; ++i) {
        const float d = x[i] - mean;
        squares[i % kLanes] = fmaf(d, d, squares[i % kLanes]);
    }
    const float square = tree_sum(squares) / (float)n + epsilon;
    const float inverse = fmaf(square, 0.0f, 1.0f / sqrtf(square));
    for (size_t i = 0; i < n; ++i) {
        const float d = (x[i] - mean) * inverse;
        y[i] = bias == nullptr ? d * weight[i] : fmaf(d, weight[i], bias[i]);
    }
}

}  // namespace awqe
