// The activation quantiser with NEON. Contract: quantize_act_s8d.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"
#include "native/kernels/quantize_act/quantize_act_lanes.h"
// clang-format on

namespace awqe {

void quantize_act_s8d_neon(const float* x, size_t k, size_t group_size, const QuantizedRows* out,
                           size_t row) {
    quantize_act_lanes(x, k, group_size, out, row);
}

}  // namespace awqe
