// The gated activation over sixteen lanes (native/ARITHMETIC.md, section 6). Include it after a
// lanes_<isa>.h.
#pragma once

#include "native/kernels/lanes/exp_lanes.h"

namespace awqe {
namespace {

inline Lanes silu_times(Lanes gate, Lanes up) {
    return mul(div(gate, add(broadcast(1.0f), exp(negate(gate)))), up);
}

inline void silu_gate_lanes(const float* gate, const float* up, size_t n, float* out) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, silu_times(load(gate + i), load(up + i)));
    if (i < n) {
        store_first(out + i, n - i,
                    silu_times(load_first(gate + i, n - i), load_first(up + i, n - i)));
    }
}

}  // namespace
}  // namespace awqe
