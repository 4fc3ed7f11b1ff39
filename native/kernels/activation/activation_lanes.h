// The activations over sixteen lanes (native/ARITHMETIC.md, section 6). Include it after a
// lanes_<isa>.h.
#pragma once

#include "native/kernels/lanes/exp_lanes.h"

namespace awqe {
namespace {

struct Silu {
    static Lanes of(Lanes x) { return div(x, add(broadcast(1.0f), exp(negate(x)))); }
};

// x * 0 keeps what is not finite: a maximum would not.
struct Relu {
    static Lanes of(Lanes x) { return fma(x, zero(), zero_where_less(x, x, zero())); }
};

struct Gelu {
    static Lanes of(Lanes x) {
        const Lanes magnitude = max(x, negate(x));
        const Lanes z = min(mul(magnitude, broadcast(0x1.6a09e6p-1f)), broadcast(13.0f));
        const Lanes t = div(broadcast(1.0f), fma(z, broadcast(0x1.4f740ap-2f), broadcast(1.0f)));
        Lanes p = broadcast(0x1.0fb844p-1f);
        p = fma(p, t, broadcast(-0x1.7401c6p-1f));
        p = fma(p, t, broadcast(0x1.6be1c6p-1f));
        p = fma(p, t, broadcast(-0x1.23531cp-3f));
        p = fma(p, t, broadcast(0x1.04f20cp-3f));
        const Lanes tail = mul(mul(p, t), exp(negate(mul(z, z))));
        return fnma(magnitude, tail, Relu::of(x));
    }
};

struct GeluTanh {
    static Lanes of(Lanes x) {
        const Lanes c = min(max(x, broadcast(-16.0f)), broadcast(16.0f));
        const Lanes slope = fma(mul(c, c), broadcast(0x1.2444f2p-4f), broadcast(0x1.988454p+0f));
        return div(x, add(broadcast(1.0f), exp(negate(mul(c, slope)))));
    }
};

struct QuickGelu {
    static Lanes of(Lanes x) {
        const Lanes c = min(max(x, broadcast(-64.0f)), broadcast(64.0f));
        return div(x, add(broadcast(1.0f), exp(negate(mul(c, broadcast(0x1.b3b646p+0f))))));
    }
};

template <class Activation>
void activation_lanes(const float* x, const float* factor, size_t n, float* out) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Lanes y = Activation::of(load(x + i));
        store(out + i, factor == nullptr ? y : mul(y, load(factor + i)));
    }
    if (i == n) return;
    const Lanes y = Activation::of(load_first(x + i, n - i));
    store_first(out + i, n - i, factor == nullptr ? y : mul(y, load_first(factor + i, n - i)));
}

}  // namespace
}  // namespace awqe
