// A router's logits in plain loops. Contract: router_f32.h; arithmetic: native/ARITHMETIC.md,
// section 10.
#include <math.h>

#include "native/kernels/router/router_f32.h"
#include "native/kernels/scalar/tree.h"

namespace awqe {

void router_f32_reference(const float* x, const float* weight, size_t k, size_t begin, size_t end,
                          float* logits) {
    for (size_t e = begin; e < end; ++e) {
        float lane[kLanes] = {};
        for (size_t i = 0; i < k; ++i) {
            lane[i % kLanes] = fmaf(x[i], weight[e * k + i], lane[i % kLanes]);
        }
        logits[e] = tree_sum(lane);
    }
}

}  // namespace awqe
