// How many threads decode a model fastest on this machine. Owns the measurement; who asks keeps the
// answer.
#pragma once

#include "native/runtime/model.h"

namespace awqe {

// Products of the model's own matrices with 1, 2, ... threads, in about 0.2 seconds; the smallest
// number within 5 % of the fastest. `kernels` as for Session. Throws Failure.
unsigned measure_decode_threads(const Model& model, const char* kernels);

}  // namespace awqe
