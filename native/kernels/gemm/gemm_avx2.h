// The matrix-matrix product on 256-bit registers, one algorithm for every bit width and for
// VPMADDUBSW and VPDPBUSD (gemm_ug.h).
//
// 16 rows by up to 512 inputs of the matrix are expanded once to bytes, four inputs of 8 rows in a
// register, and then meet up to 192 tokens, kTokens at a time: 2 * kTokens sums in registers. The
// float sums of the 192 tokens wait side by side from one piece of inputs to the next. Owns this
// walk; codes_avx2.h says how codes expand. One token is the matrix-vector product, 2 to 8 are
// few_avx2.h's, some more are several such passes. Internal linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/codes_avx2.h"
#include "native/kernels/gemm/few_avx2.h"
#include "native/kernels/gemm/gemm_ug.h"
#include "native/kernels/gemm/passes_x86.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {
namespace {

constexpr size_t kTileRows = 16;
constexpr size_t kTileInputs = 512;  // 8 KB of expanded codes, a quarter of a 32 KB L1 cache
constexpr size_t kTileGroups = kTileInputs / 32;
constexpr size_t kTileTokens = 192;     // as in gemm_avx512.h
constexpr size_t kTileFromTokens = 12;  // fewer go faster in passes of up to kFewTokens

struct Tile {
    alignas(32) uint8_t codes[kTileInputs / 4][kTileRows][4];
    alignas(32) float scales[kTileGroups][kTileRows];
    alignas(32) int32_t zero_points[kTileGroups][kTileRows];
};

// Registers with rows 0 and 1, 2 and 3, 4 and 5, 6 and 7 in their lanes and four inputs in each
// element become registers of four inputs with 8 rows in order. out: a step of the tile every
// kTileRows * 4 bytes.
inline void transpose(const __m256i (&pairs)[4], uint8_t* out) {
    const __m256i ab_low = _mm256_unpacklo_epi32(pairs[0], pairs[1]);
    const __m256i ab_high = _mm256_unpackhi_epi32(pairs[0], pairs[1]);
    const __m256i cd_low = _mm256_unpacklo_epi32(pairs[2], pairs[3]);
    const __m256i cd_high = _mm256_unpackhi_epi32(pairs[2], pairs[3]);
    const __m256i steps[4] = {
        _mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)};
    const __m256i order =
        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // even rows, then odd ones, so far
    for (size_t i = 0; i < 4; ++i) {
        _mm256_store_si256((__m256i*)(out + i * kTileRows * 4),
                           _mm256_permutevar8x32_epi32(steps[i], order));
    }
}

// Fills the tile with rows [row, row + kTileRows) and inputs [begin, begin + count). Rows past the
// matrix hold some other rows, whose results are not stored.
template <int kBits>
inline void expand_tile(const PackedMatrix& w, size_t row, size_t begin, size_t count, Tile* tile) {
    using Run = Codes<kBits>;
    const size_t blocks = (w.rows + kBlockRows - 1) / kBlockRows;
    const size_t group_begin = begin / w.group_size;
    const size_t group_end = (begin + count + w.group_size - 1) / w.group_size;
    for (size_t part = 0; part < kTileRows / 8; ++part) {
        const uint8_t* block[2];
        for (size_t b = 0; b < 2; ++b) {
            const size_t index = row / kBlockRows + part * 2 + b;
            block[b] = w.blocks + (index < blocks ? index : blocks - 1) * w.block_bytes;
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
            __m256i fields[4][Run::kFields];
#pragma GCC unroll 2
            for (size_t b = 0; b < 2; ++b) {
                const uint8_t* low = block[b] + w.codes_offset + position * Run::kLowBytes;
                const uint8_t* high_bytes =
                    block[b] + w.high_plane_offset + position * Run::kHighBytes;
                ask_for(low + low_ahead, Run::kLowBytes);
                ask_for(high_bytes + high_ahead, Run::kHighBytes);
                const typename Run::High high(high_bytes);
                Run::expand(low, high, 0, fields[2 * b]);
                Run::expand(low, high, 1, fields[2 * b + 1]);
            }
#pragma GCC unroll 4
            for (size_t f = 0; f < Run::kFields; ++f) {
                const __m256i four[4] = {fields[0][f], fields[1][f], fields[2][f], fields[3][f]};
                transpose(four, tile->codes[(run * Run::kRun + f * 16) / 4][part * 8]);
            }
        }
        for (size_t group = group_begin; group < group_end && group < w.groups; ++group) {
            for (size_t b = 0; b < 2; ++b) {
                const size_t column = part * 8 + b * 4;
                int32_t four;
                memcpy(&four, block[b] + w.zero_points_offset + 4 * group, sizeof(four));
                _mm_store_si128((__m128i*)&tile->zero_points[group - group_begin][column],
                                _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
                _mm_store_ps(&tile->scales[group - group_begin][column],
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

// The float step of gemv_ug.h for 8 rows and one token. y: float [8]
inline void add_group(__m256i sums, __m256i zero_points, __m256 scales, int32_t x_sum,
                      float x_scale, float* y) {
    // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point is zero.
    const __m256i dot =
        _mm256_sub_epi32(sums, _mm256_madd_epi16(zero_points, _mm256_set1_epi32(x_sum)));
    const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x_scale));
    _mm256_store_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, _mm256_load_ps(y)));
}

// Where the reading of the tile and of the activations stands.
struct Step {
    const uint8_t* tile;
    const int8_t* codes;
};

// Adds `count` steps of four inputs for kTokens tokens.
template <class Sum, int kTokens>
inline void add_steps(Step* at, size_t stride, size_t count, Sum (&sums)[kTokens][2]) {
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
        sums[t][0].clear();
        sums[t][1].clear();
    }
    const uint8_t* tile = at->tile;
    const int8_t* codes = at->codes;
    const uint8_t* end = tile + count * kTileRows * 4;
#pragma GCC unroll 1
    for (; tile != end; tile += kTileRows * 4, codes += 4) {
        const __m256i w0 = _mm256_load_si256((const __m256i*)tile);
        const __m256i w1 = _mm256_load_si256((const __m256i*)(tile + 32));
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            int32_t four;
            memcpy(&four, codes + t * stride, sizeof(four));
            const __m256i a = _mm256_set1_epi32(four);
            sums[t][0].add(w0, a);
            sums[t][1].add(w1, a);
        }
        // The sums are in registers here: GCC otherwise writes them to the stack in every step.
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            asm("" : "+x"(sums[t][0].lanes), "+x"(sums[t][1].lanes));
        }
    }
    at->tile = tile;
    at->codes = codes;
}

// kTokens tokens, from x's row `token` on. y: float [kTokens, kTileRows], zero before the first
// piece.
template <class Sum, int kTokens>
inline void multiply_tokens(const Tile& tile, const Piece& piece, const QuantizedRows& x,
                            size_t token, float* y) {
    Step at = {tile.codes[0][0], x.codes + token * x.code_stride + piece.begin};
    const size_t side = token * x.group_stride + piece.begin / piece.group_size;
    for (size_t group = 0; group < piece.groups; ++group) {
        const size_t inputs_left = piece.count - group * piece.group_size;
        size_t steps = (inputs_left < piece.group_size ? inputs_left : piece.group_size) / 4;
        __m256i totals[kTokens][2];
        for (int t = 0; t < kTokens; ++t) totals[t][0] = totals[t][1] = _mm256_setzero_si256();
        while (steps != 0) {
            const size_t some = steps < Sum::kSteps ? steps : Sum::kSteps;
            steps -= some;
            Sum sums[kTokens][2];
            add_steps<Sum, kTokens>(&at, x.code_stride, some, sums);
#pragma GCC unroll 6
            for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
                for (int r = 0; r < 2; ++r) {
                    totals[t][r] = _mm256_add_epi32(totals[t][r], sums[t][r].wide());
                }
            }
        }
        for (size_t r = 0; r < 2; ++r) {
            const __m256i zeros =
                _mm256_load_si256((const __m256i*)&tile.zero_points[group][r * 8]);
            const __m256 scales = _mm256_load_ps(&tile.scales[group][r * 8]);
            for (int t = 0; t < kTokens; ++t) {
                const size_t i = side + t * x.group_stride + group;
                add_group(totals[t][r], zeros, scales, x.sums[i], x.scales[i],
                          y + t * kTileRows + r * 8);
            }
        }
    }
}

// Tokens [token, token + count), count <= kTileTokens, of the tile's rows. sums: [count, kTileRows]
template <class Sum, int kTokens>
inline void multiply_piece(const Tile& tile, const Piece& piece, const QuantizedRows& x,
                           size_t token, size_t count, float (*sums)[kTileRows]) {
    size_t t = 0;
    for (; t + kTokens <= count; t += kTokens) {
        multiply_tokens<Sum, kTokens>(tile, piece, x, token + t, sums[t]);
    }
    for (; t + 2 <= count; t += 2) multiply_tokens<Sum, 2>(tile, piece, x, token + t, sums[t]);
    for (; t < count; ++t) multiply_tokens<Sum, 1>(tile, piece, x, token + t, sums[t]);
}

// Rows [row, row + rows), rows <= kTileRows, of tokens [token, token + count).
template <int kBits, class Sum, int kTokens>
inline void multiply_tile(const PackedMatrix& w, const QuantizedRows& x, size_t token, size_t count,
                          float* y, size_t y_stride, size_t row, size_t rows) {
    Tile tile;
    alignas(32) float sums[kTileTokens][kTileRows];
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
        multiply_piece<Sum, kTokens>(tile, piece, x, token, count, sums);
    }
    for (size_t t = 0; t < count; ++t) {
        memcpy(y + (token + t) * y_stride + row, sums[t], rows * sizeof(float));
    }
}

// kTokens: as many as leave 16 registers for their sums, two of codes and one broadcast.
template <int kBits, class Sum, int kTokens>
inline void gemm(const PackedMatrix* w, const QuantizedRows* x, size_t m, float* y, size_t y_stride,
                 size_t row_begin, size_t row_end) {
    for (size_t token = 0; token < m; token += kTileTokens) {
        const size_t count = m - token < kTileTokens ? m - token : kTileTokens;
        if (count < kTileFromTokens) {
            multiply_in_passes(
                *w, rows_from(*x, token), count, kFewTokens, y + token * y_stride, y_stride,
                row_begin, row_end,
                [&](const QuantizedRows& row, float* out, size_t begin, size_t end) {
                    gemv<kBits, Sum>(w, &row, out, begin, end);
                },
                [&](const QuantizedRows& some, size_t rows, float* out, size_t begin, size_t end) {
                    multiply_few<kBits, Sum>(*w, some, rows, out, y_stride, begin, end);
                });
            continue;
        }
        for (size_t row = row_begin; row < row_end; row += kTileRows) {
            const size_t rows = row_end - row < kTileRows ? row_end - row : kTileRows;
            multiply_tile<kBits, Sum, kTokens>(*w, *x, token, count, y, y_stride, row, rows);
        }
    }
}

}  // namespace
}  // namespace awqe
