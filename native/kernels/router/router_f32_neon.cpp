// A router's logits with NEON. Contract: router_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/router/router_f32.h"
#include "native/kernels/router/router_lanes.h"
// clang-format on

namespace awqe {

void router_f32_neon(const float* x, const float* weight, size_t k, size_t begin, size_t end,
                     float* logits) {
    router_lanes(x, weight, k, begin, end, logits);
}

}  // namespace awqe
