// Floats into the fp16 cache with NEON. Contract: attention_f16.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/attention/attention_f16.h"
#include "native/kernels/attention/store_half_lanes.h"
// clang-format on

namespace awqe {

void store_half_f16_neon(const float* x, size_t n, uint16_t* out) { store_half_lanes(x, n, out); }

}  // namespace awqe
