// The soft cap in plain loops. Contract: soft_cap_f32.h; arithmetic: native/ARITHMETIC.md,
// section 6.
#include "native/kernels/soft_cap/soft_cap_f32.h"

#include "native/kernels/scalar/tanh.h"

namespace awqe {

void soft_cap_f32_reference(float* x, size_t n, float cap) {
    for (size_t i = 0; i < n; ++i) x[i] = soft_cap_scalar(x[i], cap);
}

}  // namespace awqe
