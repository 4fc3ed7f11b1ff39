// The softmax over sixteen lanes (native/ARITHMETIC.md, section 10). Include it after a
// lanes_<isa>.h.
#pragma once

#include <stddef.h>

#include "native/kernels/lanes/exp_lanes.h"

namespace awqe {
namespace {

inline void softmax_lanes(const float* x, size_t n, float* p) {
    const size_t whole = n / 16 * 16;
    const size_t rest = n - whole;
    float most = x[0];
    if (whole > 0) {
        Lanes maxima = load(x);
        for (size_t i = 16; i < whole; i += 16) maxima = max(maxima, load(x + i));
        most = largest(maxima);
    }
    for (size_t i = whole; i < n; ++i) most = x[i] > most ? x[i] : most;
    const Lanes shift = broadcast(most);
    Lanes total = zero();
    for (size_t i = 0; i < whole; i += 16) {
        const Lanes e = exp(sub(load(x + i), shift));
        store(p + i, e);
        total = add(total, e);
    }
    if (rest > 0) {
        // Lanes behind the end hold no number of x: what the exponential makes of them is dropped.
        store_first(p + whole, rest, exp(sub(load_first(x + whole, rest), shift)));
        total = add(total, load_first(p + whole, rest));
    }
    const Lanes divisor = broadcast(sum(total));
    for (size_t i = 0; i < whole; i += 16) store(p + i, div(load(p + i), divisor));
    if (rest > 0) {
        store_first(p + whole, rest, div(load_first(p + whole, rest), divisor));
    }
}

}  // namespace
}  // namespace awqe
