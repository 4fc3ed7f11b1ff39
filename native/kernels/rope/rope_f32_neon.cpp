// The rotary position embedding with NEON. Contract: rope_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/rope/rope_f32.h"
#include "native/kernels/rope/rope_lanes.h"
// clang-format on

namespace awqe {

void rope_f32_neon(float* x, size_t heads, size_t head_size, const float* cosines,
                   const float* sines) {
    rope_lanes(x, heads, head_size, cosines, sines);
}

}  // namespace awqe
