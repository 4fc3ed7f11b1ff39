// The gated activation in a plain loop. Contract: silu_gate_f32.h; arithmetic:
// native/ARITHMETIC.md, section 6.
#include "native/kernels/gated/silu_gate_f32.h"
#include "native/kernels/scalar/exp.h"

namespace awqe {

void silu_gate_f32_reference(const float* gate, const float* up, size_t n, float* out) {
    for (size_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_scalar(-gate[i])) * up[i];
}

}  // namespace awqe
