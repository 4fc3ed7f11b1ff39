// Floats into the fp16 cache, sixteen at a time. Include it after a lanes_<isa>.h.
#pragma once

namespace awqe {
namespace {

inline void store_half_lanes(const float* x, size_t n, uint16_t* out) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) store_half(out + i, load(x + i));
    if (i < n) store_half_first(out + i, n - i, load_first(x + i, n - i));
}

}  // namespace
}  // namespace awqe
