// The softmax in plain loops. Contract: softmax_f32.h; arithmetic: native/ARITHMETIC.md, section
// 10.
#include <stddef.h>

#include "native/kernels/router/softmax_f32.h"
#include "native/kernels/scalar/exp.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {

void softmax_f32_reference(const float* x, size_t n, float* p) {
    float largest = x[0];
    for (size_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    float lane[kLanes] = {};
    for (size_t i = 0; i < n; ++i) {
        p[i] = exp_scalar(x[i] - largest);
        lane[i % kLanes] += p[i];
    }
    const float total = tree_sum(lane);
    for (size_t i = 0; i < n; ++i) p[i] /= total;
}

}  // namespace awqe
