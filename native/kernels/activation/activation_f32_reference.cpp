// The activations in plain loops. Contract: activation_f32.h; arithmetic: native/ARITHMETIC.md,
// section 6.
#include <math.h>

#include "native/kernels/activation/activation_f32.h"
#include "native/kernels/scalar/exp.h"

namespace awqe {
namespace {

float silu(float x) { return x / (1.0f + exp_scalar(-x)); }

float relu(float x) { return fmaf(x, 0.0f, x < 0.0f ? 0.0f : x); }

float gelu(float x) {
    const float magnitude = fabsf(x);
    float z = magnitude * 0x1.6a09e6p-1f;
    if (z > 13.0f) z = 13.0f;
    const float t = 1.0f / fmaf(z, 0x1.4f740ap-2f, 1.0f);
    float p = 0x1.0fb844p-1f;
    p = fmaf(p, t, -0x1.7401c6p-1f);
    p = fmaf(p, t, 0x1.6be1c6p-1f);
    p = fmaf(p, t, -0x1.23531cp-3f);
    p = fmaf(p, t, 0x1.04f20cp-3f);
    const float tail = p * t * exp_scalar(-(z * z));
    return fmaf(-magnitude, tail, relu(x));
}

float gelu_tanh(float x) {
    float c = x;
    if (c < -16.0f) c = -16.0f;
    if (c > 16.0f) c = 16.0f;
    const float slope = fmaf(c * c, 0x1.2444f2p-4f, 0x1.988454p+0f);
    return x / (1.0f + exp_scalar(-(c * slope)));
}

float quick_gelu(float x) {
    float c = x;
    if (c < -64.0f) c = -64.0f;
    if (c > 64.0f) c = 64.0f;
    return x / (1.0f + exp_scalar(-(c * 0x1.b3b646p+0f)));
}

template <float (*Activation)(float)>
void activate(const float* x, const float* factor, size_t n, float* out) {
    for (size_t i = 0; i < n; ++i) {
        const float y = Activation(x[i]);
        out[i] = factor == nullptr ? y : y * factor[i];
    }
}

}  // namespace

void silu_f32_reference(const float* x, const float* factor, size_t n, float* out) {
    activate<silu>(x, factor, n, out);
}
void gelu_f32_reference(const float* x, const float* factor, size_t n, float* out) {
    activate<gelu>(x, factor, n, out);
}
void gelu_tanh_f32_reference(const float* x, const float* factor, size_t n, float* out) {
    activate<gelu_tanh>(x, factor, n, out);
}
void relu_f32_reference(const float* x, const float* factor, size_t n, float* out) {
    activate<relu>(x, factor, n, out);
}
void quick_gelu_f32_reference(const float* x, const float* factor, size_t n, float* out) {
    activate<quick_gelu>(x, factor, n, out);
}

}  // namespace awqe
