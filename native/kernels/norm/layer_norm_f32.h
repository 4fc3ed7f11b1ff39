// The contract of the layer norm: y = (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * weight +
// bias, both means reduced over 16 virtual lanes. Order: native/ARITHMETIC.md, section 4.
#pragma once

#include <stddef.h>

namespace awqe {

// x, weight, y: float [n]; bias: float [n], or NULL. y may be x.
using LayerNormFunction = void (*)(const float* x, const float* weight, const float* bias, size_t n,
                                   float epsilon, float* y);

}  // namespace awqe
