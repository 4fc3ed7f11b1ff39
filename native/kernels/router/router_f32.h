// The contract of a router's logits: the dot product of one row of activations with each row of a
// float matrix, over 16 virtual lanes. Order: native/ARITHMETIC.md, section 10.
#pragma once

#include <stddef.h>

namespace awqe {

// logits[e] = sum over i of x[i] * weight[e][i], for experts e in [begin, end). x: float [k];
// weight: float [experts, k]; logits: float [experts], only [begin, end) is written.
using RouterFunction = void (*)(const float* x, const float* weight, size_t k, size_t begin,
                                size_t end, float* logits);

}  // namespace awqe
