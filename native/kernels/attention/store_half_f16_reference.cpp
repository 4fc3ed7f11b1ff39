// Floats into the fp16 cache, one at a time. Contract: attention_f16.h.
#include "native/kernels/attention/attention_f16.h"
#include "native/kernels/scalar/half.h"

namespace awqe {

void store_half_f16_reference(const float* x, size_t n, uint16_t* out) {
    for (size_t i = 0; i < n; ++i) out[i] = float_to_half(x[i]);
}

}  // namespace awqe
