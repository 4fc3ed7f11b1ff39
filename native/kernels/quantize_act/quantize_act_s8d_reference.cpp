// The activation quantiser, one number at a time. Contract: quantize_act_s8d.h; arithmetic:
// native/ARITHMETIC.md, section 3.
#include <string.h>

#include "native/kernels/quantize_act/quantize_act_s8d.h"

namespace awqe {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: 1.5 * 2^23 leaves no bit for a fraction,
// and the low bits of the sum are the integer.
int32_t round_to_int(float x) {
    const float shifted = x + 0x1.8p+23f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    return (int32_t)(bits - 0x4b400000u);
}

}  // namespace

void quantize_act_s8d_reference(const float* x, size_t k, size_t group_size,
                                const QuantizedRows* out, size_t row) {
    int8_t* codes = out->codes + row * out->code_stride;
    float* scales = out->scales + row * out->group_stride;
    int32_t* sums = out->sums + row * out->group_stride;
    for (size_t begin = 0, group = 0; begin < k; begin += group_size, ++group) {
        const size_t end = begin + group_size < k ? begin + group_size : k;
        int32_t largest_bits = 0;
        for (size_t i = begin; i < end; ++i) {
            int32_t bits;
            memcpy(&bits, &x[i], sizeof(bits));
            bits &= 0x7fffffff;
            if (bits > largest_bits) largest_bits = bits;
        }
        float largest;
        memcpy(&largest, &largest_bits, sizeof(largest));
        const bool zero = largest_bits < kSmallestBits;
        const bool finite = largest_bits < kInfinityBits;
        scales[group] = zero ? 0.0f : finite ? largest / 127.0f : __builtin_nanf("");
        const float inverse = zero ? 0.0f : 127.0f / largest;
        int32_t sum = 0;
        for (size_t i = begin; i < end; ++i) {
            codes[i] = finite ? (int8_t)round_to_int(x[i] * inverse) : (int8_t)0;
            sum += codes[i];
        }
        sums[group] = sum;
    }
    memset(codes + k, 0, out->code_stride - k);
}

}  // namespace awqe
