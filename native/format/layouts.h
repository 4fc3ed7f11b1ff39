// Block sizes and strides of the packed layout r4k32. FORMAT.md draws the bytes;
// awq_edge/layouts.py is the counterpart in numpy. Owns arithmetic on sizes only: it reads no file
// and touches no weight.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace awqe {

// A matrix of weights inside the mapped file: w[row][input] = scale * (code - zero_point).
// The derived fields come from packed_matrix_layout(); the reader checked all of them against the
// file.
struct PackedMatrix {
    const uint8_t* blocks;      // 64-byte aligned; ceil(rows / 4) blocks of block_bytes
    uint64_t rows;              // n: outputs
    uint64_t columns;           // k: inputs
    uint32_t bits;              // 2, 3, 4, 5, 6 or 8
    uint32_t group_size;        // g: 32, 64 or 128 inputs share a scale and a zero-point
    uint32_t groups;            // ceil(k / g); the last one may be short
    uint32_t padded_columns;    // k rounded up to 32 (4 and 8 bits) or 64 (the others)
    size_t zero_points_offset;  // from the beginning of a block: after 4 fp16 scales per group
    size_t codes_offset;        // from the beginning of a block; a multiple of 64
    size_t high_plane_offset;  // 3, 5 and 6 bits: from the beginning of a block; otherwise equal to
                               // block_bytes
    size_t block_bytes;        // a multiple of 64
};

constexpr uint32_t kBlockRows = 4;  // rows of a block: one per 128-bit lane of a 512-bit register
constexpr uint32_t kMatrixHeader = 64;      // bytes before the first block
constexpr uint32_t kMaxColumns = 1u << 20;  // keeps every size below 2^64 and every index in int32

static inline size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Bits of a code in the first plane. The rest lies in a second one, which 3, 5 and 6 bits have.
static inline uint32_t low_plane_bits(uint32_t bits) {
    return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits;
}

// The layout of a matrix whose bits, group_size, rows and columns are already known to be legal;
// blocks stays NULL.
static inline PackedMatrix packed_matrix_layout(uint64_t rows, uint64_t columns, uint32_t bits,
                                                uint32_t group_size) {
    PackedMatrix w = {};
    w.rows = rows;
    w.columns = columns;
    w.bits = bits;
    w.group_size = group_size;
    w.groups = (uint32_t)((columns + group_size - 1) / group_size);
    w.padded_columns = (uint32_t)round_up(columns, bits == 4 || bits == 8 ? 32 : 64);
    w.zero_points_offset = (size_t)w.groups * kBlockRows * 2;
    w.codes_offset = round_up(w.zero_points_offset + (size_t)w.groups * kBlockRows, 64);
    const size_t low_bits = low_plane_bits(bits);
    const size_t codes_of_block = (size_t)w.padded_columns * kBlockRows;
    const size_t low_plane_end = w.codes_offset + codes_of_block * low_bits / 8;
    if (low_bits != bits) {
        w.high_plane_offset = low_plane_end;
        w.block_bytes = round_up(low_plane_end + codes_of_block * (bits - low_bits) / 8, 64);
    } else {
        w.block_bytes = round_up(low_plane_end, 64);
        w.high_plane_offset = w.block_bytes;
    }
    return w;
}

// Bytes of the whole tensor, header included.
static inline uint64_t packed_matrix_bytes(const PackedMatrix& w) {
    return kMatrixHeader + (w.rows + kBlockRows - 1) / kBlockRows * w.block_bytes;
}

}  // namespace awqe
