// The gated activation with NEON. Contract: silu_gate_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/gated/silu_gate_f32.h"
#include "native/kernels/gated/silu_gate_lanes.h"
// clang-format on

namespace awqe {

void silu_gate_f32_neon(const float* gate, const float* up, size_t n, float* out) {
    silu_gate_lanes(gate, up, n, out);
}

}  // namespace awqe
