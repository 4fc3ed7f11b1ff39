// The exponential of native/ARITHMETIC.md, section 6, over sixteen lanes. Include it after a
// lanes_<isa>.h.
#pragma once

namespace awqe {
namespace {

inline Lanes exp(Lanes x) {
    const Lanes limit = broadcast(-87.0f);
    const Lanes clamped = min(max(x, limit), broadcast(88.0f));
    // n = x / ln 2 to the nearest even integer: 1.5 * 2^23 leaves no bit for a fraction.
    const Lanes shift = broadcast(0x1.8p+23f);
    const Lanes shifted = add(mul(clamped, broadcast(0x1.715476p+0f)), shift);
    const Lanes n = sub(shifted, shift);
    Lanes r = fnma(n, broadcast(0x1.62e43p-1f), clamped);
    r = fnma(n, broadcast(-0x1.05c61p-29f), r);
    Lanes p = broadcast(0x1.6db42ap-10f);
    p = fma(p, r, broadcast(0x1.123b56p-7f));
    p = fma(p, r, broadcast(0x1.55545ep-5f));
    p = fma(p, r, broadcast(0x1.55548ep-3f));
    p = fma(p, r, broadcast(0x1p-1f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    // x * 0 adds nothing to a number, and makes NaN of what is not finite.
    return fma(x, zero(), zero_where_less(mul(p, power_of_two(shifted)), x, limit));
}

}  // namespace
}  // namespace awqe
