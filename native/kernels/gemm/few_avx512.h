// The product of a packed matrix with 2 to 8 rows of activations with AVX-512 VNNI, for weights
// that come from memory: a code is loaded and expanded once, in the order in which it is stored,
// and meets every row's activations while it is in a register (gemm_ug.h).
//
// Two blocks go side by side. A register of partial sums holds four int32 of each of a block's four
// rows for one token; at a group's end the registers of two blocks and two tokens become one
// register of sixteen sums, "a square": element 4 r + 2 t + b is row r of block b for token t of
// the pair. Owns this walk; codes_avx512.h says how codes expand. Internal linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/ahead_x86.h"
#include "native/kernels/codes/codes_avx512.h"
#include "native/kernels/gemm/gemm_ug.h"

namespace awqe {
namespace {

constexpr size_t kFewTokens = 8;  // 16 registers of partial sums, half of all

// Rows of activations that are read side by side, from one input on.
struct TokenCodes {
    const int8_t* first;   // of token 0
    const int8_t* middle;  // of token 4: addresses then need no more than three strides
    size_t stride;

    inline __m512i load(int token, size_t input) const {
        const int8_t* const base = token < 4 ? first : middle;
        return _mm512_broadcast_i32x4(_mm_load_si128(
            (const __m128i*)(base + static_cast<size_t>(token % 4) * stride + input)));
    }
};

// Adds fields kFirst ... kFirst + kCount - 1 of one run of a block. x begins at the run's inputs.
template <int kBits, int kFirst, int kCount, int kTokens>
inline void add_fields(const uint8_t* low, const uint8_t* high, const TokenCodes& x, size_t input,
                       __m512i (&sums)[kTokens]) {
    using Run = Codes<kBits>;
    __m512i fields[Run::kFields];
    expand<kBits>(low, high, fields);
#pragma GCC unroll 4
    for (int f = kFirst; f < kFirst + kCount; ++f) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
            sums[t] = _mm512_dpbusd_epi32(sums[t], fields[f], x.load(t, input + 16 * (size_t)f));
        }
        // The sums are in registers here: GCC otherwise writes them to the stack in every step.
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) asm("" : "+v"(sums[t]));
    }
}

// Four registers of four int32 a row become a square.
inline __m512i square_of(__m512i b0t0, __m512i b1t0, __m512i b0t1, __m512i b1t1) {
    const __m512i t0 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(b0t0, b1t0), _mm512_unpackhi_epi32(b0t0, b1t0));
    const __m512i t1 =
        _mm512_add_epi32(_mm512_unpacklo_epi32(b0t1, b1t1), _mm512_unpackhi_epi32(b0t1, b1t1));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(t0, t1), _mm512_unpackhi_epi64(t0, t1));
}

// The scales of a group of two blocks as a square.
inline __m512 scales_of(const uint8_t* block0, const uint8_t* block1) {
    const __m128i halves = _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)block0),
                                              _mm_loadl_epi64((const __m128i*)block1));
    return _mm512_cvtph_ps(
        _mm256_set_m128i(_mm_unpackhi_epi32(halves, halves), _mm_unpacklo_epi32(halves, halves)));
}

// The zero-points of a group of two blocks as a square.
inline __m512i zero_points_of(const uint8_t* block0, const uint8_t* block1) {
    int32_t four[2];
    memcpy(&four[0], block0, sizeof(four[0]));
    memcpy(&four[1], block1, sizeof(four[1]));
    const __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four[0]), _mm_cvtsi32_si128(four[1]));
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi16(bytes, bytes));
}

// The float step of gemv_ug.h for one group. index: of the group's scale of token 0.
template <int kTokens>
inline void add_group(__m512 (&acc)[(kTokens + 1) / 2], const __m512i (&sums)[2][kTokens],
                      __m512 scales, __m512i zero_points, const QuantizedRows& x, size_t index) {
    constexpr __mmask16 kSecond = 0xcccc;  // the elements of a pair's second token
#pragma GCC unroll 4
    for (int pair = 0; pair < (kTokens + 1) / 2; ++pair) {
        const int a = 2 * pair;
        const int b = a + 1 < kTokens ? a + 1 : a;  // a token without a partner is its own
        const size_t at_a = index + static_cast<size_t>(a) * x.group_stride;
        const size_t at_b = index + static_cast<size_t>(b) * x.group_stride;
        const __m512i x_sums =
            _mm512_mask_set1_epi32(_mm512_set1_epi32(-x.sums[at_a]), kSecond, -x.sums[at_b]);
        const __m512 x_scales = _mm512_mask_broadcastss_ps(_mm512_set1_ps(x.scales[at_a]), kSecond,
                                                           _mm_load_ss(x.scales + at_b));
        // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point is zero.
        const __m512i dot = _mm512_dpwssd_epi32(
            square_of(sums[0][a], sums[1][a], sums[0][b], sums[1][b]), zero_points, x_sums);
        acc[pair] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scales, x_scales), acc[pair]);
    }
}

// Eight outputs of each token: those of two blocks. kHalves: a run holds two groups (2 and 3 bits,
// groups of 32).
template <int kBits, int kTokens, bool kHalves>
inline void dot_blocks(const PackedMatrix& w, const QuantizedRows& x,
                       const uint8_t* const (&block)[2], __m512 (&acc)[(kTokens + 1) / 2]) {
    using Run = Codes<kBits>;
    constexpr int kFields = Run::kFields;
    Ahead ahead(w, block[1]);
    ahead.ask(2 * w.codes_offset);  // scales and zero-points
    const TokenCodes codes = {x.codes, x.codes + 4 * x.code_stride, x.code_stride};
    for (__m512& a : acc) a = _mm512_setzero_ps();
    const size_t offset = w.zero_points_offset;
    size_t run = 0;
    for (size_t group = 0; group < w.groups; ++group) {
        const size_t left = (w.padded_columns - group * w.group_size) / Run::kRun;
        const size_t whole = w.group_size / Run::kRun;
        // The activations behind a short last group are zero.
        const size_t runs = kHalves ? 1 : left < whole ? left : whole;
        __m512i sums[2][kTokens];
        for (auto& of_block : sums) {
            for (__m512i& s : of_block) s = _mm512_setzero_si512();
        }
        for (const size_t end = run + runs; run < end; ++run) {
#pragma GCC unroll 2
            for (int b = 0; b < 2; ++b) {
                const uint8_t* low = block[b] + w.codes_offset + run * Run::kLowBytes;
                const uint8_t* high = block[b] + w.high_plane_offset + run * Run::kHighBytes;
                // The blocks follow each other, and are one stream.
                ahead.ask(Run::kLowBytes + Run::kHighBytes);
                const size_t input = run * Run::kRun;
                if constexpr (kHalves) {
                    add_fields<kBits, 0, kFields / 2, kTokens>(low, high, codes, input, sums[b]);
                } else {
                    add_fields<kBits, 0, kFields, kTokens>(low, high, codes, input, sums[b]);
                }
            }
        }
        add_group<kTokens>(
            acc, sums, scales_of(block[0] + 8 * group, block[1] + 8 * group),
            zero_points_of(block[0] + offset + 4 * group, block[1] + offset + 4 * group), x, group);
        if constexpr (kHalves) {  // the other half of the run that has just been read
            if (++group == w.groups) break;
            for (int b = 0; b < 2; ++b) {
                for (__m512i& s : sums[b]) s = _mm512_setzero_si512();
                add_fields<kBits, kFields / 2, kFields / 2, kTokens>(
                    block[b] + w.codes_offset + (run - 1) * Run::kLowBytes,
                    block[b] + w.high_plane_offset + (run - 1) * Run::kHighBytes, codes,
                    (run - 1) * Run::kRun, sums[b]);
            }
            add_group<kTokens>(
                acc, sums, scales_of(block[0] + 8 * group, block[1] + 8 * group),
                zero_points_of(block[0] + offset + 4 * group, block[1] + offset + 4 * group), x,
                group);
        }
    }
}

// The first `rows` of eight results: all, or those up to the end of the range.
inline void store_rows(float* out, size_t rows, __m256 eight) {
    if (rows == 2 * kBlockRows) {
        _mm256_storeu_ps(out, eight);
        return;
    }
    float all[2 * kBlockRows];
    _mm256_storeu_ps(all, eight);
    memcpy(out, all, rows * sizeof(float));
}

// Rows [row_begin, row_end) of kTokens tokens.
template <int kBits, int kTokens, bool kHalves>
[[gnu::noinline]] void few_rows(const PackedMatrix& w, const QuantizedRows& x, float* y,
                                size_t y_stride, size_t row_begin, size_t row_end) {
    // Rows of block 0, then of block 1, first of one token and then of the other.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t row = row_begin; row < row_end; row += 2 * kBlockRows) {
        const uint8_t* const first = w.blocks + row / kBlockRows * w.block_bytes;
        // A single last block stands beside itself.
        const bool one = row + kBlockRows >= row_end;
        const uint8_t* const block[2] = {first, one ? first : first + w.block_bytes};
        __m512 acc[(kTokens + 1) / 2];
        dot_blocks<kBits, kTokens, kHalves>(w, x, block, acc);
        const size_t rows = row_end - row < 2 * kBlockRows ? row_end - row : 2 * kBlockRows;
#pragma GCC unroll 4
        for (int pair = 0; pair < (kTokens + 1) / 2; ++pair) {
            const __m512 both = _mm512_permutexvar_ps(order, acc[pair]);
            float* const out = y + static_cast<size_t>(2 * pair) * y_stride + row;
            store_rows(out, rows, _mm512_castps512_ps256(both));
            if (2 * pair + 1 < kTokens) {
                store_rows(out + y_stride, rows, _mm512_extractf32x8_ps(both, 1));
            }
        }
    }
}

template <int kBits, int kTokens>
inline void few_rows(const PackedMatrix& w, const QuantizedRows& x, float* y, size_t y_stride,
                     size_t row_begin, size_t row_end) {
    if constexpr (Codes<kBits>::kRun > 32) {
        if (w.group_size == 32) {
            few_rows<kBits, kTokens, true>(w, x, y, y_stride, row_begin, row_end);
            return;
        }
    }
    few_rows<kBits, kTokens, false>(w, x, y, y_stride, row_begin, row_end);
}

// 2 <= tokens <= kFewTokens, the rows of x from the first one on.
template <int kBits>
inline void multiply_few(const PackedMatrix& w, const QuantizedRows& x, size_t tokens, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    switch (tokens) {
        case 2:
            return few_rows<kBits, 2>(w, x, y, y_stride, row_begin, row_end);
        case 3:
            return few_rows<kBits, 3>(w, x, y, y_stride, row_begin, row_end);
        case 4:
            return few_rows<kBits, 4>(w, x, y, y_stride, row_begin, row_end);
        case 5:
            return few_rows<kBits, 5>(w, x, y, y_stride, row_begin, row_end);
        case 6:
            return few_rows<kBits, 6>(w, x, y, y_stride, row_begin, row_end);
        case 7:
            return few_rows<kBits, 7>(w, x, y, y_stride, row_begin, row_end);
        default:
            return few_rows<kBits, 8>(w, x, y, y_stride, row_begin, row_end);
    }
}

}  // namespace
}  // namespace awqe
