// The product of a packed matrix with 2 to 8 rows of activations on 256-bit registers, for weights
// that come from memory and for VPMADDUBSW and VPDPBUSD: up to 512 inputs of a block are loaded and
// expanded once, in the order in which they are stored, and then meet the rows of activations, up
// to four at a time (gemm_ug.h).
//
// Two tokens share a register of results: four rows of the block for the one, then for the other.
// Owns this walk; codes_avx2.h says how codes expand, sums_avx2.h how products are added. Internal
// linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/ahead_x86.h"
#include "native/kernels/codes/codes_avx2.h"
#include "native/kernels/gemm/gemm_ug.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {
namespace {

constexpr size_t kFewTokens = 8;
constexpr size_t kFewPairs = kFewTokens / 2;
constexpr size_t kStripInputs = 512;  // 2 KB of codes; a multiple of every group and run
constexpr size_t kStripGroups = kStripInputs / 32;

// Up to kStripInputs inputs of a block as unsigned bytes, rows 0 and 1, then rows 2 and 3, of 16
// inputs; scales and zero-points of its groups, twice.
struct Strip {
    __m256i codes[kStripInputs / 16][2];
    __m256 scales[kStripGroups];
    __m256i zero_points[kStripGroups];
    size_t groups;
    size_t group_inputs;
    size_t last_inputs;  // of the last group, with padding: a multiple of 32
};

// Fills the strip from input `begin` of the block on.
template <int kBits>
inline void expand_strip(const PackedMatrix& w, const uint8_t* block, size_t begin, Ahead* ahead,
                         Strip* strip) {
    using Run = Codes<kBits>;
    const size_t left = w.padded_columns - begin;
    const size_t count = left < kStripInputs ? left : kStripInputs;
    const uint8_t* low = block + w.codes_offset + begin / Run::kRun * Run::kLowBytes;
    const uint8_t* high_bytes = block + w.high_plane_offset + begin / Run::kRun * Run::kHighBytes;
    __m256i(*out)[2] = strip->codes;
    for (size_t run = 0; run < count / Run::kRun; ++run) {
        ahead->ask(Run::kLowBytes + Run::kHighBytes);
        const typename Run::High high(high_bytes);
#pragma GCC unroll 2
        for (size_t pair = 0; pair < 2; ++pair) {
            __m256i fields[Run::kFields];
            Run::expand(low, high, pair, fields);
#pragma GCC unroll 4
            for (int f = 0; f < Run::kFields; ++f) _mm256_store_si256(&out[f][pair], fields[f]);
        }
        low += Run::kLowBytes;
        high_bytes += Run::kHighBytes;
        out += Run::kFields;
    }
    // Padding alone makes no group.
    const size_t first = begin / w.group_size;
    const size_t groups = (count + w.group_size - 1) / w.group_size;
    strip->groups = first + groups < w.groups ? groups : w.groups - first;
    strip->group_inputs = w.group_size;
    const size_t before = (strip->groups - 1) * w.group_size;
    strip->last_inputs = count - before < w.group_size ? count - before : w.group_size;
    for (size_t g = 0; g < strip->groups; ++g) {
        const __m128 four =
            _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)(block + 8 * (first + g))));
        int32_t bytes;
        memcpy(&bytes, block + w.zero_points_offset + 4 * (first + g), sizeof(bytes));
        const __m128i zeros = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
        strip->scales[g] = _mm256_set_m128(four, four);
        strip->zero_points[g] = _mm256_set_m128i(zeros, zeros);
    }
}

// The float step of gemv_ug.h for a pair of tokens. scales_x, sums_x: of each token.
template <class Sum>
inline void add_pair(float* acc, const Sum (&a)[2], const Sum (&b)[2], __m256 scales,
                     __m256i zero_points, __m256 x_scales, __m256i x_sums) {
    const __m256i rows_a = halve(a);
    const __m256i rows_b = halve(b);
    __m256i dot = _mm256_add_epi32(_mm256_unpacklo_epi64(rows_a, rows_b),
                                   _mm256_unpackhi_epi64(rows_a, rows_b));
    dot = _mm256_permutevar8x32_epi32(dot, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point is zero.
    dot = _mm256_sub_epi32(dot, _mm256_madd_epi16(zero_points, x_sums));
    const __m256 scale = _mm256_mul_ps(scales, x_scales);
    _mm256_store_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, _mm256_load_ps(acc)));
}

// Adds the strip for kTokens tokens; x are the codes of the first one at the strip's inputs, `side`
// is the index of its first scale. acc: float [pairs][8]. Not inlined: the loop needs the
// registers.
template <class Sum, int kTokens>
[[gnu::noinline]] void add_strip(const Strip& strip, const QuantizedRows& rows, const int8_t* x,
                                 size_t side, float (*acc)[8]) {
    const size_t stride = rows.code_stride;
    const __m256i(*codes)[2] = strip.codes;
    for (size_t g = 0; g < strip.groups; ++g, ++side) {
        const size_t inputs = g + 1 < strip.groups ? strip.group_inputs : strip.last_inputs;
        Sum sums[kTokens][2];
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) clear(sums[t]);
#pragma GCC unroll 2
        for (const int8_t* end = x + inputs; x < end; x += 16, ++codes) {
            const __m256i rows01 = _mm256_load_si256(&codes[0][0]);
            const __m256i rows23 = _mm256_load_si256(&codes[0][1]);
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) {
                const __m256i one = _mm256_broadcastsi128_si256(
                    _mm_load_si128((const __m128i*)(x + static_cast<size_t>(t) * stride)));
                sums[t][0].add(rows01, one);
                sums[t][1].add(rows23, one);
            }
            // The sums are in registers here: GCC otherwise writes them to the stack in every step.
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) {
                asm("" : "+x"(sums[t][0].lanes), "+x"(sums[t][1].lanes));
            }
        }
#pragma GCC unroll 2
        for (int a = 0; a < kTokens; a += 2) {
            const int b = a + 1 < kTokens ? a + 1 : a;  // a token without a partner is its own
            const size_t at_a = side + static_cast<size_t>(a) * rows.group_stride;
            const size_t at_b = side + static_cast<size_t>(b) * rows.group_stride;
            const __m256i x_sums =
                _mm256_set_m128i(_mm_set1_epi32(rows.sums[at_b]), _mm_set1_epi32(rows.sums[at_a]));
            const __m256 x_scales =
                _mm256_set_m128(_mm_set1_ps(rows.scales[at_b]), _mm_set1_ps(rows.scales[at_a]));
            add_pair(acc[a / 2], sums[a], sums[b], strip.scales[g], strip.zero_points[g], x_scales,
                     x_sums);
        }
    }
}

// The strip, which begins at input `begin`, for every token.
template <class Sum>
inline void add_strip_of_tokens(const Strip& strip, const QuantizedRows& x, size_t tokens,
                                size_t begin, float (*acc)[8]) {
    const size_t group = begin / strip.group_inputs;
    const auto codes = [&](size_t t) { return x.codes + t * x.code_stride + begin; };
    const auto side = [&](size_t t) { return t * x.group_stride + group; };
    size_t t = 0;
    for (; t + 4 <= tokens; t += 4) {
        add_strip<Sum, 4>(strip, x, codes(t), side(t), acc + t / 2);
    }
    if (tokens - t == 3) add_strip<Sum, 3>(strip, x, codes(t), side(t), acc + t / 2);
    if (tokens - t == 2) add_strip<Sum, 2>(strip, x, codes(t), side(t), acc + t / 2);
    if (tokens - t == 1) add_strip<Sum, 1>(strip, x, codes(t), side(t), acc + t / 2);
}

// Rows [row_begin, row_end) of 2 to kFewTokens tokens, the rows of x from the first one on.
template <int kBits, class Sum>
inline void multiply_few(const PackedMatrix& w, const QuantizedRows& x, size_t tokens, float* y,
                         size_t y_stride, size_t row_begin, size_t row_end) {
    Strip strip;
    const uint8_t* block = w.blocks + row_begin / kBlockRows * w.block_bytes;
    for (size_t row = row_begin; row < row_end; row += kBlockRows, block += w.block_bytes) {
        Ahead ahead(w, block);
        ahead.ask(w.codes_offset);  // scales and zero-points
        alignas(32) float acc[kFewPairs][8];
        memset(acc, 0, sizeof(acc));
        for (size_t begin = 0; begin < w.columns; begin += kStripInputs) {
            expand_strip<kBits>(w, block, begin, &ahead, &strip);
            add_strip_of_tokens<Sum>(strip, x, tokens, begin, acc);
        }
        const size_t rows = row_end - row < kBlockRows ? row_end - row : kBlockRows;
        for (size_t t = 0; t < tokens; ++t) {
            memcpy(y + t * y_stride + row, acc[t / 2] + t % 2 * kBlockRows, rows * sizeof(float));
        }
    }
}

}  // namespace
}  // namespace awqe
