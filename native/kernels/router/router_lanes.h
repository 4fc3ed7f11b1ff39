// A router's logits over sixteen lanes (native/ARITHMETIC.md, section 10). Include it after a
// lanes_<isa>.h.
#pragma once

#include <stddef.h>

namespace awqe {
namespace {

// Four experts share every load of x, and their chains hide each other's latency.
inline void router_four(const float* x, const float* weight, size_t k, float* logits) {
    const size_t whole = k / 16 * 16;
    Lanes a = zero(), b = zero(), c = zero(), d = zero();
    for (size_t i = 0; i < whole; i += 16) {
        const Lanes v = load(x + i);
        a = fma(v, load(weight + i), a);
        b = fma(v, load(weight + k + i), b);
        c = fma(v, load(weight + 2 * k + i), c);
        d = fma(v, load(weight + 3 * k + i), d);
    }
    if (whole < k) {
        const size_t rest = k - whole;
        const Lanes v = load_first(x + whole, rest);
        a = fma(v, load_first(weight + whole, rest), a);
        b = fma(v, load_first(weight + k + whole, rest), b);
        c = fma(v, load_first(weight + 2 * k + whole, rest), c);
        d = fma(v, load_first(weight + 3 * k + whole, rest), d);
    }
    sum_four(logits, a, b, c, d);
}

inline float router_one(const float* x, const float* weight, size_t k) {
    const size_t whole = k / 16 * 16;
    Lanes a = zero();
    for (size_t i = 0; i < whole; i += 16) a = fma(load(x + i), load(weight + i), a);
    if (whole < k) {
        a = fma(load_first(x + whole, k - whole), load_first(weight + whole, k - whole), a);
    }
    return sum(a);
}

inline void router_lanes(const float* x, const float* weight, size_t k, size_t begin, size_t end,
                         float* logits) {
    size_t e = begin;
    for (; e + 4 <= end; e += 4) router_four(x, weight + e * k, k, logits + e);
    for (; e < end; ++e) logits[e] = router_one(x, weight + e * k, k);
}

}  // namespace
}  // namespace awqe
