// The matrix-matrix product with AVX-512 VNNI, one algorithm for every bit width (gemm_ug.h).
//
// 32 rows by up to 512 inputs of the matrix are expanded once to bytes in the order that VPDPBUSD
// wants, four inputs of 16 rows in a register, and then meet up to 192 tokens: 12 at a time, two
// registers of rows each, 24 sums in registers for a whole group. The float sums of the 192 tokens
// wait side by side from one piece of inputs to the next, and so do the tokens' codes, in the L2
// cache. Owns this walk; codes_avx512.h says how codes expand. One token is the matrix-vector
// product, 2 to 8 are few_avx512.h's, and some more are several such passes: for them the time is
// the memory's, and putting codes in another order would cost more than it saves. Internal linkage
// throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/codes_avx512.h"
#include "native/kernels/gemm/few_avx512.h"
#include "native/kernels/gemm/gemm_ug.h"
#include "native/kernels/gemm/passes_x86.h"
#include "native/kernels/gemv/gemv_avx512.h"

namespace awqe {
namespace {

constexpr size_t kTileRows = 32;
constexpr size_t kTileInputs = 512;  // 16 KB of expanded codes, half of a 32 KB L1 cache
constexpr size_t kTileGroups = kTileInputs / 32;
constexpr size_t kRowRegisters = kTileRows / 16;
constexpr size_t kTileTokens = 192;  // 384 KB of codes at 2048 inputs; expanding costs 2 % of them
// Fewer tokens go faster in passes of up to kFewTokens, each of which expands the codes again.
template <int kBits>
constexpr size_t kTileFromTokens = kBits == 3 || kBits == 5 ? 9
                                   : kBits == 6             ? 16
                                                            : 28;

struct Tile {
    alignas(64) uint8_t codes[kTileInputs / 4][kTileRows][4];
    alignas(64) float scales[kTileGroups][kTileRows];
    alignas(64) int32_t zero_points[kTileGroups][kTileRows];
};

// Registers of four blocks with a row in each lane and four inputs in each element become registers
// of four inputs with 16 rows in order. out: a step of the tile every kTileRows * 4 bytes.
inline void transpose(const __m512i (&blocks)[4], uint8_t* out) {
    const __m512i ab_low = _mm512_unpacklo_epi32(blocks[0], blocks[1]);
    const __m512i ab_high = _mm512_unpackhi_epi32(blocks[0], blocks[1]);
    const __m512i cd_low = _mm512_unpacklo_epi32(blocks[2], blocks[3]);
    const __m512i cd_high = _mm512_unpackhi_epi32(blocks[2], blocks[3]);
    const __m512i steps[4] = {
        _mm512_unpacklo_epi64(ab_low, cd_low), _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high), _mm512_unpackhi_epi64(ab_high, cd_high)};
    // Element 4 * row + block so far.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t i = 0; i < 4; ++i) {
        _mm512_store_si512(out + i * kTileRows * 4, _mm512_permutexvar_epi32(order, steps[i]));
    }
}

// Fills the tile with rows [row, row + kTileRows) and inputs [begin, begin + count). Rows past the
// matrix count as zero.
template <int kBits>
inline void expand_tile(const PackedMatrix& w, size_t row, size_t begin, size_t count, Tile* tile) {
    using Run = Codes<kBits>;
    const size_t blocks = (w.rows + kBlockRows - 1) / kBlockRows;
    for (size_t part = 0; part < kRowRegisters; ++part) {
        const size_t first = row / kBlockRows + part * 4;
        const uint8_t* block[4];
        for (size_t b = 0; b < 4; ++b) {
            // A block past the end stands for rows that are never stored: any block will do.
            const size_t index = first + b < blocks ? first + b : blocks - 1;
            block[b] = w.blocks + index * w.block_bytes;
        }
        // The same blocks' next inputs, or the next blocks' first ones, are asked for meanwhile.
        const size_t low_begin = begin / Run::kRun * Run::kLowBytes;
        const size_t high_begin = begin / Run::kRun * Run::kHighBytes;
        const bool last = begin + count == w.padded_columns;
        const size_t next_blocks = kTileRows / kBlockRows * w.block_bytes;
        const size_t low_ahead =
            last ? next_blocks - low_begin : kTileInputs / Run::kRun * Run::kLowBytes;
        const size_t high_ahead =
            last ? next_blocks - high_begin : kTileInputs / Run::kRun * Run::kHighBytes;
        for (size_t run = 0; run < count / Run::kRun; ++run) {
            const size_t position = begin / Run::kRun + run;
            __m512i fields[4][Run::kFields];
#pragma GCC unroll 4
            for (size_t b = 0; b < 4; ++b) {
                const uint8_t* low = block[b] + w.codes_offset + position * Run::kLowBytes;
                const uint8_t* high = block[b] + w.high_plane_offset + position * Run::kHighBytes;
                ask_for(low + low_ahead, Run::kLowBytes);
                ask_for(high + high_ahead, Run::kHighBytes);
                expand<kBits>(low, high, fields[b]);
            }
#pragma GCC unroll 4
            for (size_t f = 0; f < Run::kFields; ++f) {
                const __m512i four[4] = {fields[0][f], fields[1][f], fields[2][f], fields[3][f]};
                transpose(four, tile->codes[(run * Run::kRun + f * 16) / 4][part * 16]);
            }
        }
        const size_t group_begin = begin / w.group_size;
        const size_t group_end = (begin + count + w.group_size - 1) / w.group_size;
        for (size_t group = group_begin; group < group_end && group < w.groups; ++group) {
            for (size_t b = 0; b < 4; ++b) {
                int32_t four;
                memcpy(&four, block[b] + w.zero_points_offset + 4 * group, sizeof(four));
                _mm_store_si128(
                    (__m128i*)&tile->zero_points[group - group_begin][part * 16 + b * 4],
                    _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
                _mm_store_ps(&tile->scales[group - group_begin][part * 16 + b * 4],
                             _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)(block[b] + 8 * group))));
            }
        }
    }
}

// What one call of multiply_tokens adds, apart from the tokens.
struct Piece {
    size_t begin;  // first input; a multiple of the group size
    size_t count;  // inputs, padding included
    size_t group_size;
    size_t groups;  // that begin in the piece
};

// kTokens tokens, from x's row `token` on. y: float [kTokens, kTileRows], zero before the first
// piece.
template <int kTokens>
inline void multiply_tokens(const Tile& tile, const Piece& piece, const QuantizedRows& x,
                            size_t token, float* y) {
    const size_t stride = x.code_stride;
    const int8_t* codes = x.codes + token * stride + piece.begin;
    const size_t side = token * x.group_stride + piece.begin / piece.group_size;
    const uint8_t* step = tile.codes[0][0];
    for (size_t group = 0; group < piece.groups; ++group) {
        const size_t inputs_left = piece.count - group * piece.group_size;
        const size_t steps = (inputs_left < piece.group_size ? inputs_left : piece.group_size) / 4;
        __m512i sums[kTokens][kRowRegisters];
#pragma GCC unroll 12
        for (int t = 0; t < kTokens; ++t) {
            sums[t][0] = _mm512_setzero_si512();
            sums[t][1] = _mm512_setzero_si512();
        }
        for (size_t i = 0; i < steps; ++i, step += kTileRows * 4, codes += 4) {
            const __m512i w0 = _mm512_load_si512(step);
            const __m512i w1 = _mm512_load_si512(step + 64);
#pragma GCC unroll 12
            for (int t = 0; t < kTokens; ++t) {
                int32_t four;
                memcpy(&four, codes + t * stride, sizeof(four));
                const __m512i a = _mm512_set1_epi32(four);
                sums[t][0] = _mm512_dpbusd_epi32(sums[t][0], w0, a);
                sums[t][1] = _mm512_dpbusd_epi32(sums[t][1], w1, a);
            }
            // The sums are in registers here: GCC otherwise writes them to the stack in every step.
#pragma GCC unroll 12
            for (int t = 0; t < kTokens; ++t) asm("" : "+v"(sums[t][0]), "+v"(sums[t][1]));
        }
#pragma GCC unroll 2  // every index of sums is a constant, or it would live in memory
        for (size_t r = 0; r < kRowRegisters; ++r) {
            const __m512i zeros = _mm512_load_si512(&tile.zero_points[group][r * 16]);
            const __m512 scales = _mm512_load_ps(&tile.scales[group][r * 16]);
#pragma GCC unroll 12
            for (int t = 0; t < kTokens; ++t) {
                const size_t at = side + t * x.group_stride + group;
                // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point
                // is zero.
                const __m512i dot =
                    _mm512_dpwssd_epi32(sums[t][r], zeros, _mm512_set1_epi32(-x.sums[at]));
                const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scales[at]));
                float* out = y + t * kTileRows + r * 16;
                _mm512_store_ps(
                    out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, _mm512_load_ps(out)));
            }
        }
    }
}

// Tokens [token, token + count), count <= kTileTokens, of the tile's rows. sums: [count, kTileRows]
inline void multiply_piece(const Tile& tile, const Piece& piece, const QuantizedRows& x,
                           size_t token, size_t count, float (*sums)[kTileRows]) {
    size_t t = 0;
    for (; t + 12 <= count; t += 12) multiply_tokens<12>(tile, piece, x, token + t, sums[t]);
    for (; t + 4 <= count; t += 4) multiply_tokens<4>(tile, piece, x, token + t, sums[t]);
    for (; t < count; ++t) multiply_tokens<1>(tile, piece, x, token + t, sums[t]);
}

// Rows [row, row + rows), rows <= kTileRows, of tokens [token, token + count).
template <int kBits>
inline void multiply_tile(const PackedMatrix& w, const QuantizedRows& x, size_t token, size_t count,
                          float* y, size_t y_stride, size_t row, size_t rows) {
    Tile tile;
    alignas(64) float sums[kTileTokens][kTileRows];
    memset(sums, 0, count * sizeof(sums[0]));
    for (size_t begin = 0; begin < w.padded_columns; begin += kTileInputs) {
        const size_t left = w.padded_columns - begin;
        Piece piece = {};
        piece.begin = begin;
        piece.count = left < kTileInputs ? left : kTileInputs;
        piece.group_size = w.group_size;
        // Padding alone makes no group.
        const size_t group_begin = begin / w.group_size;
        const size_t groups = (piece.count + w.group_size - 1) / w.group_size;
        piece.groups = group_begin + groups < w.groups ? groups : w.groups - group_begin;
        expand_tile<kBits>(w, row, begin, piece.count, &tile);
        multiply_piece(tile, piece, x, token, count, sums);
    }
    for (size_t t = 0; t < count; ++t) {
        memcpy(y + (token + t) * y_stride + row, sums[t], rows * sizeof(float));
    }
}

template <int kBits>
inline void gemm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y, size_t y_stride,
                 size_t row_begin, size_t row_end) {
    for (size_t token = 0; token < m; token += kTileTokens) {
        const size_t count = m - token < kTileTokens ? m - token : kTileTokens;
        if (count < kTileFromTokens<kBits>) {
            multiply_in_passes(
                *w, rows_from(*x, token), count, kFewTokens, y + token * y_stride, y_stride,
                row_begin, row_end,
                [&](const QuantizedRows& row, float* out, size_t begin, size_t end) {
                    gemv<kBits>(w, &row, out, begin, end);
                },
                [&](const QuantizedRows& some, size_t rows, float* out, size_t begin, size_t end) {
                    multiply_few<kBits>(*w, some, rows, out, y_stride, begin, end);
                });
            continue;
        }
        for (size_t row = row_begin; row < row_end; row += kTileRows) {
            const size_t rows = row_end - row < kTileRows ? row_end - row : kTileRows;
            multiply_tile<kBits>(*w, *x, token, count, y, y_stride, row, rows);
        }
    }
}

}  // namespace
}  // namespace awqe
