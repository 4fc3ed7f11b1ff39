// The contract of the soft cap of logits: x = cap * tanh(x / cap). Order of the operations:
// native/ARITHMETIC.md, section 6.
#pragma once

#include <stddef.h>

namespace awqe {

// x: float [n], changed in place. cap: positive and finite.
using SoftCapFunction = void (*)(float* x, size_t n, float cap);

}  // namespace awqe
