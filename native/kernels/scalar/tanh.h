// The hyperbolic tangent of native/ARITHMETIC.md, section 6, in scalar code. Internal linkage, see
// half.h.
#pragma once

#include "native/kernels/scalar/exp.h"

namespace awqe {

static inline float tanh_scalar(float x) {
    const float magnitude = fabsf(x);
    float y;
    if (magnitude < 0x1.2p-1f) {
        const float square = x * x;
        float p = -0x1.95002p-8f;
        p = fmaf(p, square, 0x1.582fb2p-6f);
        p = fmaf(p, square, -0x1.b90948p-5f);
        p = fmaf(p, square, 0x1.110c72p-3f);
        p = fmaf(p, square, -0x1.555548p-2f);
        y = fmaf(x * square, p, x);
    } else {
        const float limited = magnitude < 16.0f ? magnitude : 16.0f;
        y = 1.0f - 2.0f / (exp_scalar(limited + limited) + 1.0f);
        if (x < 0.0f) y = -y;
    }
    // + 0 makes +0 of -0; x * 0 makes NaN of what is not finite.
    return fmaf(x, 0.0f, y + 0.0f);
}

static inline float soft_cap_scalar(float x, float cap) { return cap * tanh_scalar(x / cap); }

}  // namespace awqe
