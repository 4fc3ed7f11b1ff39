// The matrix-vector product on 256-bit registers, one algorithm for every bit width and for
// VPMADDUBSW and VPDPBUSD: a 128-bit lane is a row of the block, so that one register of codes
// meets one broadcast of 16 activations (gemv_ug.h).
//
// Owns the walk over blocks, groups and runs. How codes expand stands in codes_avx2.h, how products
// are added in sums_avx2.h and sums_avx_vnni.h. Internal linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/ahead_x86.h"
#include "native/kernels/codes/codes_avx2.h"
#include "native/kernels/gemv/gemv_ug.h"

namespace awqe {
namespace {

// Where a block's reading stands.
struct Cursor {
    const uint8_t* low;
    const uint8_t* high;
    const int8_t* x;
    Ahead ahead;
};

// Adds one run to the sums of rows 0, 1 and rows 2, 3. Where a run holds two groups (runs of 64,
// groups of 32), the second half of the fields goes to `second`; otherwise both are the same array.
template <int kBits, class Sum>
inline void add_run(Cursor* at, Sum (&first)[2], Sum (&second)[2]) {
    using Run = Codes<kBits>;
    __m256i x[Run::kFields];
#pragma GCC unroll 4
    for (int f = 0; f < Run::kFields; ++f) {
        x[f] = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(at->x + 16 * f)));
    }
    const typename Run::High high(at->high);
#pragma GCC unroll 2
    for (size_t pair = 0; pair < 2; ++pair) {
        __m256i fields[Run::kFields];
        Run::expand(at->low, high, pair, fields);
#pragma GCC unroll 4
        for (int f = 0; f < Run::kFields; ++f) {
            (f < Run::kFields / 2 ? first : second)[pair].add(fields[f], x[f]);
        }
    }
    at->low += Run::kLowBytes;
    at->high += Run::kHighBytes;
    at->x += Run::kRun;
}

template <class Sum>
inline void clear(Sum (&sums)[2]) {
    sums[0].clear();
    sums[1].clear();
}

// Four int32 a row become two: rows 0 and 2 in the lower lane, 1 and 3 in the upper one, twice.
// Unpacking and adding takes half as long as VPHADDD.
template <class Sum>
inline __m256i halve(const Sum (&sums)[2]) {
    const __m256i rows01 = sums[0].wide();
    const __m256i rows23 = sums[1].wide();
    return _mm256_add_epi32(_mm256_unpacklo_epi32(rows01, rows23),
                            _mm256_unpackhi_epi32(rows01, rows23));
}

// The float step of gemv_ug.h for one group: acc, in row order.
template <class Sum>
inline __m128 add_group(__m128 acc, const Sum (&sums)[2], const uint8_t* scales,
                        const uint8_t* zero_points, float x_scale, int32_t x_sum) {
    __m256i pairs = halve(sums);
    pairs = _mm256_add_epi32(pairs, _mm256_unpackhi_epi64(pairs, pairs));
    __m128i dot =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    int32_t four;
    memcpy(&four, zero_points, sizeof(four));
    // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point is zero.
    dot = _mm_sub_epi32(
        dot, _mm_madd_epi16(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)), _mm_set1_epi32(x_sum)));
    const __m128 scale =
        _mm_mul_ps(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)scales)), _mm_set1_ps(x_scale));
    return _mm_fmadd_ps(_mm_cvtepi32_ps(dot), scale, acc);
}

// A number for each of two groups, four times in the group's lane. two: [2]
inline __m256i spread(const void* two) {
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64((const __m128i*)two)),
                                       _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

// The same for two whole groups that follow each other, a lane each up to the last step. x_scales,
// x_sums: [2]
template <class Sum>
inline __m128 add_two_groups(__m128 acc, const Sum (&first)[2], const Sum (&second)[2],
                             const uint8_t* scales, const uint8_t* zero_points,
                             const float* x_scales, const int32_t* x_sums) {
    const __m256i a = halve(first);
    const __m256i b = halve(second);
    __m256i dot = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    dot = _mm256_permutevar8x32_epi32(dot, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m256i zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)zero_points));
    dot = _mm256_sub_epi32(dot, _mm256_madd_epi16(zeros, spread(x_sums)));
    const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)scales)),
                                       _mm256_castsi256_ps(spread(x_scales)));
    const __m256 d = _mm256_cvtepi32_ps(dot);
    acc = _mm_fmadd_ps(_mm256_castps256_ps128(d), _mm256_castps256_ps128(scale), acc);
    return _mm_fmadd_ps(_mm256_extractf128_ps(d, 1), _mm256_extractf128_ps(scale, 1), acc);
}

// The four outputs of one block.
template <int kBits, class Sum, size_t kGroup>
inline __m128 dot_block(const PackedMatrix& w, const QuantizedRows& x, const uint8_t* block) {
    constexpr size_t kRun = Codes<kBits>::kRun;
    const uint8_t* zero_points = block + w.zero_points_offset;
    constexpr size_t kGroupBytes = kGroup * kBlockRows * kBits / 8;
    Cursor at = {block + w.codes_offset, block + w.high_plane_offset, x.codes, Ahead(w, block)};
    at.ahead.ask(w.codes_offset);  // scales and zero-points
    __m128 acc = _mm_setzero_ps();
    size_t group = 0;
    for (; group + 2 <= w.columns / kGroup; group += 2) {
        Sum first[2];
        Sum second[2];
        clear(first);
        clear(second);
        at.ahead.ask(2 * kGroupBytes);
        if constexpr (kGroup < kRun) {  // a run holds two groups
            add_run<kBits>(&at, first, second);
        } else {
#pragma GCC unroll 4
            for (size_t run = 0; run < kGroup / kRun; ++run) add_run<kBits>(&at, first, first);
#pragma GCC unroll 4
            for (size_t run = 0; run < kGroup / kRun; ++run) add_run<kBits>(&at, second, second);
        }
        acc = add_two_groups(acc, first, second, block + 8 * group, zero_points + 4 * group,
                             x.scales + group, x.sums + group);
    }
    for (; group < w.groups; ++group) {  // one whole group and a short one are left at most
        Sum sums[2];
        clear(sums);
        at.ahead.ask(kGroup < kRun ? 2 * kGroupBytes : kGroupBytes);
        if constexpr (kGroup < kRun) {
            Sum second[2];
            clear(second);
            add_run<kBits>(&at, sums, second);
            acc = add_group(acc, sums, block + 8 * group, zero_points + 4 * group, x.scales[group],
                            x.sums[group]);
            if (++group == w.groups) break;
            acc = add_group(acc, second, block + 8 * group, zero_points + 4 * group,
                            x.scales[group], x.sums[group]);
        } else {
            // The activations behind a short last group are zero.
            const size_t left = w.padded_columns - group * kGroup;
            const size_t runs = (left < kGroup ? left : kGroup) / kRun;
            for (size_t run = 0; run < runs; ++run) add_run<kBits>(&at, sums, sums);
            acc = add_group(acc, sums, block + 8 * group, zero_points + 4 * group, x.scales[group],
                            x.sums[group]);
        }
    }
    return acc;
}

template <int kBits, class Sum, size_t kGroup>
inline void gemv_rows(const PackedMatrix& w, const QuantizedRows& x, float* y, size_t row_begin,
                      size_t row_end) {
    const uint8_t* block = w.blocks + row_begin / kBlockRows * w.block_bytes;
    for (size_t row = row_begin; row < row_end; row += kBlockRows, block += w.block_bytes) {
        const __m128 four = dot_block<kBits, Sum, kGroup>(w, x, block);
        if (row + kBlockRows <= row_end) {
            _mm_storeu_ps(y + row, four);
        } else {  // the matrix ends inside the block
            float all[kBlockRows];
            _mm_storeu_ps(all, four);
            memcpy(y + row, all, (row_end - row) * sizeof(float));
        }
    }
}

template <int kBits, class Sum>
inline void gemv(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                 size_t row_end) {
    if (w->group_size == 128) {
        gemv_rows<kBits, Sum, 128>(*w, *x, y, row_begin, row_end);
    } else if (w->group_size == 64) {
        gemv_rows<kBits, Sum, 64>(*w, *x, y, row_begin, row_end);
    } else {
        gemv_rows<kBits, Sum, 32>(*w, *x, y, row_begin, row_end);
    }
}

}  // namespace
}  // namespace awqe
