// The contract of the gated activation: out = silu(gate) * up, silu(v) = v / (1 + exp(-v)).
#pragma once

#include <stddef.h>

namespace awqe {

// gate, up, out: float [n]. out may be gate or up.
using SiluGateFunction = void (*)(const float* gate, const float* up, size_t n, float* out);

}  // namespace awqe
