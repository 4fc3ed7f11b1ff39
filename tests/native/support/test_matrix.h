// A matrix of random codes, packed byte by byte as FORMAT.md section 3 says (without the code of
// native/), and the int8 activations to multiply it with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native/format/layouts.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"
#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"

namespace awqe::test {

enum class Fill {
    kRandom,
    kLargest,  // every code the largest, every zero-point 0: the largest sums
    kZero,     // every code 0, every zero-point the largest: the smallest sums
};

// 2^-14 <= |value| < 65520 or a multiple of 2^-24 below: what half can hold exactly, as a double.
inline double half_value(uint16_t half) {
    const int exponent = (half >> 10) & 31;
    const double magnitude = exponent == 0 ? std::ldexp(half & 1023, -24)
                                           : std::ldexp(1024 + (half & 1023), exponent - 25);
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

struct TestMatrix {
    size_t rows;
    size_t columns;
    size_t group_size;
    size_t groups;
    std::vector<uint8_t> codes;        // [rows, columns]
    std::vector<uint16_t> scales;      // half [rows, groups]
    std::vector<uint8_t> zero_points;  // [rows, groups]
    GuardedBuffer<uint8_t> blocks;
    PackedMatrix packed;

    TestMatrix(size_t n, size_t k, int bits, size_t g, Fill fill, uint64_t seed)
        : rows(n),
          columns(k),
          group_size(g),
          groups((k + g - 1) / g),
          codes(n * k),
          scales(n * groups),
          zero_points(n * groups),
          blocks(bytes(n, k, bits, g)),
          packed(
              packed_matrix_layout(n, k, static_cast<uint32_t>(bits), static_cast<uint32_t>(g))) {
        packed.blocks = blocks.data();
        Random random(seed);
        const int largest = (1 << bits) - 1;
        for (uint8_t& code : codes) {
            code = static_cast<uint8_t>(fill == Fill::kRandom    ? random.integer(0, largest)
                                        : fill == Fill::kLargest ? largest
                                                                 : 0);
        }
        for (uint8_t& zero : zero_points) {
            zero = static_cast<uint8_t>(fill == Fill::kRandom ? random.integer(0, largest)
                                        : fill == Fill::kZero ? largest
                                                              : 0);
        }
        for (uint16_t& scale : scales) {
            // Ordinary scales, and now and then zero, a subnormal, a negative one or the largest.
            static const uint16_t rare[] = {0, 1, 0x03ff, 0x8001, 0x7bff};
            scale = random.integer(0, 9) == 0
                        ? rare[random.integer(0, 4)]
                        : static_cast<uint16_t>(0x1c00 + random.integer(0, 0x7ff));
        }
        pack(bits);
    }

    // Padding inputs weigh nothing: their codes equal the zero-point.
    int padded_code(size_t row, size_t k) const {
        if (row >= rows) return 0;
        return k < columns ? codes[row * columns + k] : zero_points[row * groups + groups - 1];
    }

  private:
    static size_t bytes(size_t n, size_t k, int bits, size_t g) {
        const PackedMatrix w =
            packed_matrix_layout(n, k, static_cast<uint32_t>(bits), static_cast<uint32_t>(g));
        return (n + 3) / 4 * w.block_bytes;
    }

    void pack(int bits) {
        std::memset(blocks.data(), 0, blocks.size());
        const bool whole_run = bits == 4 || bits == 8;
        const size_t padded = whole_run ? (columns + 31) / 32 * 32 : (columns + 63) / 64 * 64;
        const size_t zeros = groups * 8;
        const size_t low = (groups * 12 + 63) / 64 * 64;
        // 3 bits: after 4 rows of 2 bits each; 5 and 6 bits: of 4 bits each.
        const size_t high = low + (bits == 3 ? padded : 2 * padded);
        for (size_t row = 0; row < (rows + 3) / 4 * 4; ++row) {
            uint8_t* block = blocks.data() + row / 4 * packed.block_bytes;
            const size_t r = row % 4;
            for (size_t group = 0; group < groups && row < rows; ++group) {
                const uint16_t scale = scales[row * groups + group];
                block[(group * 4 + r) * 2] = static_cast<uint8_t>(scale & 255);
                block[(group * 4 + r) * 2 + 1] = static_cast<uint8_t>(scale >> 8);
                block[zeros + group * 4 + r] = zero_points[row * groups + group];
            }
            for (size_t k = 0; k < padded; ++k) {
                const int code = padded_code(row, k);
                if (bits == 8) {
                    block[low + k / 32 * 128 + r * 32 + k % 32] = static_cast<uint8_t>(code);
                    continue;
                }
                if (bits >= 4) {
                    block[low + k / 32 * 64 + r * 16 + k % 16] |=
                        static_cast<uint8_t>((code & 15) << (k % 32 / 16 * 4));
                } else {
                    block[low + k / 64 * 64 + r * 16 + k % 16] |=
                        static_cast<uint8_t>((code & 3) << (k % 64 / 16 * 2));
                }
                if (bits == 3 || bits == 5) {
                    const int bit = bits == 3 ? code >> 2 : code >> 4;
                    block[high + k / 64 * 32 + r * 8 + k % 8] |=
                        static_cast<uint8_t>(bit << (k % 64 / 16 + (k % 16 >= 8 ? 4 : 0)));
                } else if (bits == 6) {
                    block[high + k / 64 * 64 + r * 16 + k % 16] |=
                        static_cast<uint8_t>((code >> 4) << (k % 64 / 16 * 2));
                }
            }
        }
    }
};

// m rows of int8 activations in buffers that end at guard pages.
struct TestActivations {
    size_t m;
    size_t groups;
    GuardedBuffer<int8_t> codes;
    GuardedBuffer<float> scales;
    GuardedBuffer<int32_t> sums;
    QuantizedRows rows;

    // Extreme: every code 127 or -127.
    TestActivations(size_t count, size_t k, size_t g, bool extreme, uint64_t seed)
        : m(count),
          groups((k + g - 1) / g),
          codes(count * round_up(k, 64)),
          scales(count * groups),
          sums(count * groups),
          rows{codes.data(), scales.data(), sums.data(), round_up(k, 64), groups} {
        Random random(seed);
        std::memset(codes.data(), 0, codes.size());
        for (size_t row = 0; row < m; ++row) {
            for (size_t group = 0; group < groups; ++group) {
                // Now and then a group of zeros, or a scale near the smallest that occurs.
                const int kind = random.integer(0, 15);
                const int sign = random.integer(0, 1) * 2 - 1;
                int32_t sum = 0;
                for (size_t i = group * g; i < (group + 1) * g && i < k; ++i) {
                    const int code = extreme ? 127 * sign : random.integer(-127, 127);
                    codes[row * rows.code_stride + i] = static_cast<int8_t>(kind == 0 ? 0 : code);
                    sum += codes[row * rows.code_stride + i];
                }
                sums[row * groups + group] = sum;
                scales[row * groups + group] = kind == 0   ? 0.0f
                                               : kind == 1 ? 0x1p-106f
                                                           : 0.001f + random.real(0.0009f);
            }
        }
    }
};

}  // namespace awqe::test
