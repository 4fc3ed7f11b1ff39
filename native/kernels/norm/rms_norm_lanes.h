// The RMS norm over sixteen lanes (native/ARITHMETIC.md, section 4). Include it after a
// lanes_<isa>.h.
#pragma once

#include <math.h>

namespace awqe {
namespace {

inline void rms_norm_lanes(const float* x, const float* weight, size_t n, float epsilon, float* y) {
    const size_t whole = n / 16 * 16;
    Lanes squares = zero();
    for (size_t i = 0; i < whole; i += 16) squares = fma(load(x + i), load(x + i), squares);
    if (whole < n) {
        const Lanes rest = load_first(x + whole, n - whole);
        squares = fma(rest, rest, squares);
    }
    const float square = sum(squares) / (float)n + epsilon;
    // square * 0 makes NaN of a sum that has overflowed, and changes nothing otherwise.
    const Lanes inverse = broadcast(fmaf(square, 0.0f, 1.0f / sqrtf(square)));
    for (size_t i = 0; i < whole; i += 16) {
        store(y + i, mul(mul(load(x + i), inverse), load(weight + i)));
    }
    if (whole < n) {
        const Lanes rest = load_first(x + whole, n - whole);
        const Lanes weights = load_first(weight + whole, n - whole);
        store_first(y + whole, n - whole, mul(mul(rest, inverse), weights));
    }
}

}  // namespace
}  // namespace awqe
