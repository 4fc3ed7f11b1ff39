// The contract of the activations between the matrices of a feed-forward:
//
//   out = act(x) * factor      factor: the other half of a gated feed-forward, or a stored vector
//   out = act(x)               without one
//
// silu(v) = v / (1 + exp(-v)); gelu(v) = v * Phi(v); gelu_tanh, its usual approximation;
// relu(v) = max(v, 0); quick_gelu(v) = v / (1 + exp(-1.702 v)). Orders of the operations:
// native/ARITHMETIC.md, section 6.
#pragma once

#include <stddef.h>

namespace awqe {

enum class Activation { kSilu, kGelu, kGeluTanh, kRelu, kQuickGelu };

// x, out: float [n]; factor: float [n], or NULL. out may be x or factor.
using ActivationFunction = void (*)(const float* x, const float* factor, size_t n, float* out);

}  // namespace awqe
