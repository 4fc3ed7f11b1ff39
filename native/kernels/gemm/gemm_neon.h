// The matrix-matrix product on 128-bit registers: a tile of weights is expanded to signed bytes
// once and multiplied with every token. Per output the groups come in ascending order with one
// fused multiply-add each, so the bits are those of gemv (gemm_ug.h).
//
// Owns the tile and the walk over rows, columns and tokens. An Engine (tile_neon.h,
// tile_neon_dotprod.h, tile_neon_i8mm.h) brings the order of the bytes inside the tile and the
// register tile. Internal linkage throughout.
#pragma once

#include "native/kernels/codes/codes_neon.h"
#include "native/kernels/gemm/gemm_ug.h"

namespace awqe {
namespace {

// Columns of a tile: a multiple of every group and run. Outputs wait in y between two tiles of a
// row.
constexpr size_t kTileColumns = 512;
constexpr size_t kTileGroups = kTileColumns / 32;  // the smallest groups

// kRows rows by kTileColumns columns of weights.
template <size_t kRows>
struct WeightTile {
    // Per block of 4 rows, per 16 inputs: 64 bytes in the engine's order.
    alignas(64) int8_t codes[kRows / kBlockRows][kTileColumns / 16][64];
    float scales[kRows / kBlockRows][kTileGroups][kBlockRows];
    int16_t zero_points[kRows / kBlockRows][kTileGroups]
                       [kBlockRows];  // lowered by the bias of the codes
    size_t blocks;                    // filled ones
};

// Which columns a tile covers, and in which groups they fall.
struct TileColumns {
    size_t begin;    // first column; a multiple of kTileColumns
    size_t columns;  // with padding: a multiple of 32
    size_t first_group;
    size_t groups;
    size_t group_size;

    // Inputs in the tile's group `group`, with padding: a multiple of 32. The row's last one may be
    // short.
    size_t columns_of(size_t group) const {
        const size_t left = columns - group * group_size;
        return left < group_size ? left : group_size;
    }
};

// The activations of kCount tokens in a tile's columns. Scales and sums are gathered per group,
// once for all blocks of the tile; a sum is negated, which turns a product with a zero-point into
// what is added.
template <int kCount>
struct Tokens {
    const int8_t* codes[kCount];
    float scales[kTileGroups][kCount];
    int16_t negated_sums[kTileGroups][kCount];  // at most 128 * 127

    Tokens(const QuantizedRows* x, const TileColumns& at, size_t token) {
        for (int t = 0; t < kCount; ++t) {
            codes[t] = x->codes + (token + t) * x->code_stride + at.begin;
            const size_t first = (token + t) * x->group_stride + at.first_group;
            for (size_t g = 0; g < at.groups; ++g) {
                scales[g][t] = x->scales[first + g];
                negated_sums[g][t] = (int16_t)-x->sums[first + g];
            }
        }
    }
};

// Where a tile's results go: y points at the output of its first row and first token, and whole
// blocks may be written.
struct Outputs {
    float* y;
    size_t y_stride;
    bool first;  // nothing has been added yet: y holds no partial results

    [[gnu::always_inline]] inline float32x4_t load(size_t token, size_t block) const {
        return first ? vdupq_n_f32(0.0f) : vld1q_f32(y + token * y_stride + block * kBlockRows);
    }
    [[gnu::always_inline]] inline void store(size_t token, size_t block, float32x4_t value) const {
        vst1q_f32(y + token * y_stride + block * kBlockRows, value);
    }
};

template <int kBits, class Engine>
[[gnu::noinline]] void fill_tile(const PackedMatrix* w, size_t row, size_t rows,
                                 const TileColumns& at, WeightTile<Engine::kTileRows>* tile) {
    using Packed = Codes<kBits>;
    tile->blocks = (rows + kBlockRows - 1) / kBlockRows;
    for (size_t b = 0; b < tile->blocks; ++b) {
        const uint8_t* block = w->blocks + (row / kBlockRows + b) * w->block_bytes;
        for (size_t g = 0; g < at.groups; ++g) {
            const size_t group = at.first_group + g;
            uint32_t four;
            __builtin_memcpy(&four, block + w->zero_points_offset + 4 * group, sizeof(four));
            vst1_s16(tile->zero_points[b][g],
                     vget_low_s16(widen_zero_points<kBits>(vcreate_u8(four))));
            vst1q_f32(tile->scales[b][g],
                      vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(block + 8 * group))));
        }
        const size_t begin_run = at.begin / Packed::kRun;
        const uint8_t* low = block + w->codes_offset + begin_run * Packed::kLowBytes;
        const uint8_t* high = block + w->high_plane_offset + begin_run * Packed::kHighBytes;
        int8_t (*out)[64] = tile->codes[b];
        for (size_t run = 0; run < at.columns / Packed::kRun; ++run) {
            // The same columns of the next block: a tile's rows lie a block apart, which no core
            // foresees, and with few tokens little time passes until they are wanted.
            for (size_t line = 0; line < Packed::kLowBytes; line += 64) {
                __builtin_prefetch(low + w->block_bytes + line);
            }
            if constexpr (Packed::kHighBytes != 0) __builtin_prefetch(high + w->block_bytes);
            int8x16_t upper[2][Packed::kFields];
            int8x16_t lower[2][Packed::kFields];
            Packed::expand(low, high, 0, upper);
            Packed::expand(low, high, 1, lower);
            for (int f = 0; f < Packed::kFields; ++f) {
                Engine::store_rows(*out, upper[0][f], upper[1][f], lower[0][f], lower[1][f]);
                ++out;
            }
            low += Packed::kLowBytes;
            high += Packed::kHighBytes;
        }
    }
}

// Multiplies a tile that ends inside a block, the last of the matrix: results go through a buffer
// of whole blocks.
template <class Engine>
[[gnu::noinline]] void multiply_last_rows(const WeightTile<Engine::kTileRows>& tile,
                                          const TileColumns& at, const QuantizedRows* x,
                                          size_t token, size_t tokens, const Outputs& outputs,
                                          size_t rows) {
    float whole[Engine::kTokens][Engine::kTileRows];
    for (size_t t = 0; t < tokens && !outputs.first; ++t) {
        for (size_t r = 0; r < rows; ++r) whole[t][r] = outputs.y[t * outputs.y_stride + r];
        for (size_t r = rows; r < tile.blocks * kBlockRows; ++r) whole[t][r] = 0.0f;
    }
    Engine::multiply(tile, at, x, token, tokens, {whole[0], Engine::kTileRows, outputs.first});
    for (size_t t = 0; t < tokens; ++t) {
        for (size_t r = 0; r < rows; ++r) outputs.y[t * outputs.y_stride + r] = whole[t][r];
    }
}

template <int kBits, class Engine>
inline void gemm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y, size_t y_stride,
                 size_t row_begin, size_t row_end) {
    WeightTile<Engine::kTileRows> tile;
    for (size_t row = row_begin; row < row_end; row += Engine::kTileRows) {
        const size_t rows = row_end - row < Engine::kTileRows ? row_end - row : Engine::kTileRows;
        for (size_t begin = 0; begin < w->padded_columns; begin += kTileColumns) {
            TileColumns at;
            at.begin = begin;
            at.columns =
                w->padded_columns - begin < kTileColumns ? w->padded_columns - begin : kTileColumns;
            at.group_size = w->group_size;
            at.first_group = begin / w->group_size;
            const size_t groups = kTileColumns / w->group_size;
            at.groups = w->groups - at.first_group < groups ? w->groups - at.first_group : groups;
            fill_tile<kBits, Engine>(w, row, rows, at, &tile);
            for (size_t token = 0; token < m; token += Engine::kTokens) {
                const size_t tokens = m - token < Engine::kTokens ? m - token : Engine::kTokens;
                const Outputs outputs = {y + token * y_stride + row, y_stride, begin == 0};
                if (rows % kBlockRows == 0) {
                    Engine::multiply(tile, at, x, token, tokens, outputs);
                } else {
                    multiply_last_rows<Engine>(tile, at, x, token, tokens, outputs, rows);
                }
            }
        }
    }
}

}  // namespace
}  // namespace awqe
