// One code, zero-point or scale of a packed matrix, as native/format/FORMAT.md section 3 draws
// them. Internal linkage, see half.h. Slow and obvious: for the reference kernels only.
#pragma once

#include "native/format/layouts.h"
#include "native/kernels/scalar/half.h"

namespace awqe {

static inline const uint8_t* block_of(const PackedMatrix& w, uint64_t row) {
    return w.blocks + row / kBlockRows * w.block_bytes;
}

static inline float scale_at(const PackedMatrix& w, uint64_t row, uint64_t group) {
    uint16_t half;
    memcpy(&half, block_of(w, row) + (group * kBlockRows + row % kBlockRows) * 2, sizeof(half));
    return half_to_float(half);
}

static inline int32_t zero_point_at(const PackedMatrix& w, uint64_t row, uint64_t group) {
    return block_of(w, row)[w.zero_points_offset + group * kBlockRows + row % kBlockRows];
}

static inline int32_t code_u8(const PackedMatrix& w, uint64_t row, uint64_t k) {
    return block_of(w, row)[w.codes_offset + k / 32 * 128 + row % kBlockRows * 32 + k % 32];
}

static inline int32_t code_u4(const PackedMatrix& w, uint64_t row, uint64_t k) {
    const uint8_t byte =
        block_of(w, row)[w.codes_offset + k / 32 * 64 + row % kBlockRows * 16 + k % 16];
    return k % 32 < 16 ? byte & 15 : byte >> 4;
}

// Two bits: the codes of 2-bit matrices and the low plane of 3-bit ones.
static inline int32_t code_u2(const PackedMatrix& w, uint64_t row, uint64_t k) {
    const uint8_t byte =
        block_of(w, row)[w.codes_offset + k / 64 * 64 + row % kBlockRows * 16 + k % 16];
    return (byte >> (k % 64 / 16 * 2)) & 3;
}

// A second plane of one bit.
static inline int32_t high_bit(const PackedMatrix& w, uint64_t row, uint64_t k) {
    const uint8_t byte =
        block_of(w, row)[w.high_plane_offset + k / 64 * 32 + row % kBlockRows * 8 + k % 8];
    const uint64_t field = k % 64 / 16;
    return (byte >> (k % 16 < 8 ? field : 4 + field)) & 1;
}

static inline int32_t code_u3(const PackedMatrix& w, uint64_t row, uint64_t k) {
    return code_u2(w, row, k) | high_bit(w, row, k) << 2;
}

static inline int32_t code_u5(const PackedMatrix& w, uint64_t row, uint64_t k) {
    return code_u4(w, row, k) | high_bit(w, row, k) << 4;
}

static inline int32_t code_u6(const PackedMatrix& w, uint64_t row, uint64_t k) {
    const uint8_t byte =
        block_of(w, row)[w.high_plane_offset + k / 64 * 64 + row % kBlockRows * 16 + k % 16];
    return code_u4(w, row, k) | ((byte >> (k % 64 / 16 * 2)) & 3) << 4;
}

}  // namespace awqe
