// The activations with NEON. Contract: activation_f32.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_neon.h"
#include "native/kernels/activation/activation_f32.h"
#include "native/kernels/activation/activation_lanes.h"
// clang-format on

namespace awqe {

void silu_f32_neon(const float* x, const float* factor, size_t n, float* out) {
    activation_lanes<Silu>(x, factor, n, out);
}
void gelu_f32_neon(const float* x, const float* factor, size_t n, float* out) {
    activation_lanes<Gelu>(x, factor, n, out);
}
void gelu_tanh_f32_neon(const float* x, const float* factor, size_t n, float* out) {
    activation_lanes<GeluTanh>(x, factor, n, out);
}
void relu_f32_neon(const float* x, const float* factor, size_t n, float* out) {
    activation_lanes<Relu>(x, factor, n, out);
}
void quick_gelu_f32_neon(const float* x, const float* factor, size_t n, float* out) {
    activation_lanes<QuickGelu>(x, factor, n, out);
}

}  // namespace awqe
