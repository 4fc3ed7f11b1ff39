// The rotary position embedding over sixteen lanes (native/ARITHMETIC.md, section 5). Include it
// after a lanes_<isa>.h.
#pragma once

namespace awqe {
namespace {

inline void rope_lanes(float* x, size_t heads, size_t head_size, const float* cosines,
                       const float* sines) {
    const size_t half = head_size / 2;
    for (size_t head = 0; head < heads; ++head) {
        float* low = x + head * head_size;
        float* high = low + half;
        size_t i = 0;
        for (; i + 16 <= half; i += 16) {
            const Lanes x0 = load(low + i);
            const Lanes x1 = load(high + i);
            const Lanes c = load(cosines + i);
            const Lanes s = load(sines + i);
            store(low + i, fnma(x1, s, mul(x0, c)));
            store(high + i, fma(x0, s, mul(x1, c)));
        }
        if (i < half) {
            const size_t n = half - i;
            const Lanes x0 = load_first(low + i, n);
            const Lanes x1 = load_first(high + i, n);
            const Lanes c = load_first(cosines + i, n);
            const Lanes s = load_first(sines + i, n);
            store_first(low + i, n, fnma(x1, s, mul(x0, c)));
            store_first(high + i, n, fma(x0, s, mul(x1, c)));
        }
    }
}

}  // namespace
}  // namespace awqe
