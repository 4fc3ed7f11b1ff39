// The soft cap with AVX-512. Contract: soft_cap_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_avx512.h"
#include "native/kernels/soft_cap/soft_cap_f32.h"
#include "native/kernels/soft_cap/soft_cap_lanes.h"
// clang-format on

namespace awqe {

void soft_cap_f32_avx512(float* x, size_t n, float cap) { soft_cap_lanes(x, n, cap); }

}  // namespace awqe
