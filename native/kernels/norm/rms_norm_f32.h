// The contract of the RMS norm: y = (x / sqrt(mean(x * x) + epsilon)) * weight, reduced over 16
// virtual lanes.
#pragma once

#include <stddef.h>

namespace awqe {

// x, weight, y: float [n]. y may be x.
using RmsNormFunction = void (*)(const float* x, const float* weight, size_t n, float epsilon,
                                 float* y);

}  // namespace awqe
