// The contract of the softmax: p[i] = exp(x[i] - largest) / sum of these, the sum over 16 virtual
// lanes. Order: native/ARITHMETIC.md, section 10.
#pragma once

#include <stddef.h>

namespace awqe {

// x, p: float [n], n >= 1. p may be x. If a number of x is not finite, all of p is NaN.
using SoftmaxFunction = void (*)(const float* x, size_t n, float* p);

}  // namespace awqe
