// The activation quantiser over sixteen lanes (native/ARITHMETIC.md, section 3). Include it after a
// lanes_<isa>.h.
#pragma once

#include <string.h>

#include "native/kernels/quantize_act/quantize_act_s8d.h"

namespace awqe {
namespace {

inline void quantize_act_lanes(const float* x, size_t k, size_t group_size,
                               const QuantizedRows* out, size_t row) {
    int8_t* codes = out->codes + row * out->code_stride;
    float* scales = out->scales + row * out->group_stride;
    int32_t* sums = out->sums + row * out->group_stride;
    for (size_t begin = 0, group = 0; begin < k; begin += group_size, ++group) {
        const size_t end = begin + group_size < k ? begin + group_size : k;
        const size_t whole = begin + (end - begin) / 16 * 16;
        IntLanes magnitudes = int_zero();
        for (size_t i = begin; i < whole; i += 16) {
            magnitudes = int_max(magnitudes, magnitude_bits(load(x + i)));
        }
        if (whole < end) {
            magnitudes = int_max(magnitudes, magnitude_bits(load_first(x + whole, end - whole)));
        }
        const int32_t bits = int_largest(magnitudes);
        float amplitude;
        memcpy(&amplitude, &bits, sizeof(amplitude));
        if (bits < kSmallestBits || bits >= kInfinityBits) {
            scales[group] = bits < kSmallestBits ? 0.0f : __builtin_nanf("");
            sums[group] = 0;
            memset(codes + begin, 0, end - begin);
            continue;
        }
        scales[group] = amplitude / 127.0f;
        const Lanes inverse = broadcast(127.0f / amplitude);
        IntLanes total = int_zero();
        for (size_t i = begin; i < whole; i += 16) {
            const IntLanes rounded = round_to_int(mul(load(x + i), inverse));
            store_int8(codes + i, rounded);
            total = int_add(total, rounded);
        }
        if (whole < end) {
            const IntLanes rounded = round_to_int(mul(load_first(x + whole, end - whole), inverse));
            store_int8_first(codes + whole, end - whole, rounded);
            total = int_add(total, rounded);
        }
        sums[group] = int_sum(total);
    }
    memset(codes + k, 0, out->code_stride - k);
}

}  // namespace
}  // namespace awqe
