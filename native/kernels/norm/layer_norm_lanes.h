// The layer norm over sixteen lanes (native/ARITHMETIC.md, section 4). Include it after a
// lanes_<isa>.h.
#pragma once

#include <math.h>

namespace awqe {
namespace {

inline void layer_norm_lanes(const float* x, const float* weight, const float* bias, size_t n,
                             float epsilon, float* y) {
    const size_t whole = n / 16 * 16;
    const size_t rest = n - whole;
    Lanes total = zero();
    for (size_t i = 0; i < whole; i += 16) total = add(total, load(x + i));
    if (rest > 0) total = add(total, load_first(x + whole, rest));
    const Lanes mean = broadcast(sum(total) / (float)n);
    Lanes squares = zero();
    for (size_t i = 0; i < whole; i += 16) {
        const Lanes d = sub(load(x + i), mean);
        squares = fma(d, d, squares);
    }
    if (rest > 0) {
        // Lanes behind the end hold no number of x: their distances from the mean are dropped.
        float distances[16];
        store(distances, sub(load_first(x + whole, rest), mean));
        const Lanes d = load_first(distances, rest);
        squares = fma(d, d, squares);
    }
    const float square = sum(squares) / (float)n + epsilon;
    // square * 0 makes NaN of a sum that has overflowed, and changes nothing otherwise.
    const Lanes inverse = broadcast(fmaf(square, 0.0f, 1.0f / sqrtf(square)));
    for (size_t i = 0; i < whole; i += 16) {
        const Lanes d = mul(sub(load(x + i), mean), inverse);
        store(y + i, bias == nullptr ? mul(d, load(weight + i))
                                     : fma(d, load(weight + i), load(bias + i)));
    }
    if (rest > 0) {
        const Lanes d = mul(sub(load_first(x + whole, rest), mean), inverse);
        const Lanes w = load_first(weight + whole, rest);
        store_first(y + whole, rest,
                    bias == nullptr ? mul(d, w) : fma(d, w, load_first(bias + whole, rest)));
    }
}

}  // namespace
}  // namespace awqe
