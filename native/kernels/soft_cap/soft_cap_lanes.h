// The soft cap over sixteen lanes (native/ARITHMETIC.md, section 6). Include it after a
// lanes_<isa>.h.
#pragma once

#include "native/kernels/lanes/tanh_lanes.h"

namespace awqe {
namespace {

inline void soft_cap_lanes(float* x, size_t n, float cap) {
    const Lanes caps = broadcast(cap);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) store(x + i, soft_cap(load(x + i), caps));
    if (i < n) store_first(x + i, n - i, soft_cap(load_first(x + i, n - i), caps));
}

}  // namespace
}  // namespace awqe
