// Activations as int8, one scale per token and group of inputs: the contract of the quantiser and
// the shape of its result.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace awqe {

// Bits of the smallest magnitude that a code is made of, and of infinity: magnitudes are compared
// as integers, in which infinity and NaN stand above every number and lose no comparison.
constexpr int32_t kSmallestBits = 0x0d800000;  // 2^-100
constexpr int32_t kInfinityBits = 0x7f800000;

// m rows of k activations quantised in groups of g: x = scale * code, code in -127 ... 127. A group
// that holds a number which is not finite has the scale NaN and zeros as codes.
struct QuantizedRows {
    int8_t* codes;        // [m, code_stride]; zero from k up to code_stride; 64-byte aligned for
                          // products, while the quantiser itself needs no alignment
    float* scales;        // [m, group_stride]
    int32_t* sums;        // [m, group_stride]: sum of the codes of a group
    size_t code_stride;   // k or more; k rounded up to 64 for products
    size_t group_stride;  // ceil(k / g) or more
};

// Quantises one row x: float [k] into row `row` of `out`. Writes the padding codes too. Any group
// size: the int8 cache has groups of a head.
using QuantizeActFunction = void (*)(const float* x, size_t k, size_t group_size,
                                     const QuantizedRows* out, size_t row);

}  // namespace awqe
