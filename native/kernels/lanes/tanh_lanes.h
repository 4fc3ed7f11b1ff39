// The hyperbolic tangent of native/ARITHMETIC.md, section 6, over sixteen lanes. Include it after a
// lanes_<isa>.h.
#pragma once

#include "native/kernels/lanes/exp_lanes.h"

namespace awqe {
namespace {

inline Lanes tanh(Lanes x) {
    const Lanes magnitude = max(x, negate(x));
    const Lanes limited = min(magnitude, broadcast(16.0f));
    const Lanes power = exp(add(limited, limited));
    Lanes far = sub(broadcast(1.0f), div(broadcast(2.0f), add(power, broadcast(1.0f))));
    far = sub(far, zero_where_less(add(far, far), negate(x), zero()));  // the sign of x
    const Lanes square = mul(x, x);
    Lanes p = broadcast(-0x1.95002p-8f);
    p = fma(p, square, broadcast(0x1.582fb2p-6f));
    p = fma(p, square, broadcast(-0x1.b90948p-5f));
    p = fma(p, square, broadcast(0x1.110c72p-3f));
    p = fma(p, square, broadcast(-0x1.555548p-2f));
    const Lanes near = fma(mul(x, square), p, x);
    // One of the two is zero: 0x1.1ffffep-1 is the number before 0x1.2p-1.
    const Lanes y = add(zero_where_less(near, broadcast(0x1.1ffffep-1f), magnitude),
                        zero_where_less(far, magnitude, broadcast(0x1.2p-1f)));
    // x * 0 adds nothing to a number, and makes NaN of what is not finite.
    return fma(x, zero(), y);
}

// cap * tanh(x / cap)
inline Lanes soft_cap(Lanes x, Lanes cap) { return mul(cap, tanh(div(x, cap))); }

}  // namespace
}  // namespace awqe
