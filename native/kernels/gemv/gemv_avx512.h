// The matrix-vector product with AVX-512 VNNI, one algorithm for every bit width: a 128-bit lane is
// a row of the block, so that one register of codes meets one broadcast of 16 activations
// (gemv_ug.h).
//
// Owns the walk over blocks, groups and runs; codes_avx512.h says how codes expand. Internal
// linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/ahead_x86.h"
#include "native/kernels/codes/codes_avx512.h"
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

// Adds one run to a register of partial sums for each field.
template <int kBits>
inline void add_run(Cursor* at, __m512i (&sums)[Codes<kBits>::kFields]) {
    using Run = Codes<kBits>;
    __m512i fields[Run::kFields];
    Run::shifted(at->low, at->high, fields);
#pragma GCC unroll 4
    for (int f = 0; f < Run::kFields; ++f) {
        const __m512i x = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)(at->x + 16 * f)));
        sums[f] = _mm512_dpbusd_epi32(sums[f], fields[f], x);
    }
    at->low += Run::kLowBytes;
    at->high += Run::kHighBytes;
    at->x += Run::kRun;
}

// The sums of kCount fields from kFirst on, shifted back and added.
template <int kBits, int kFirst, int kCount>
inline __m512i total(const __m512i (&sums)[Codes<kBits>::kFields]) {
    constexpr auto& kShifts = Codes<kBits>::kShifts;
    __m512i all = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int shift = 0; shift < 8; shift += 2) {
        __m512i same = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int f = kFirst; f < kFirst + kCount; ++f) {
            if (kShifts[f] == shift) same = _mm512_add_epi32(same, sums[f]);
        }
        all = _mm512_add_epi32(all, _mm512_srai_epi32(same, (unsigned)shift));
    }
    return all;
}

// Groups that are read at once: a run of 64 inputs holds two of 32.
template <int kBits, size_t kGroup>
constexpr size_t kAtOnce = kGroup < Codes<kBits>::kRun ? 2 : 1;

// Four int32 a row, whose sum is the row's dot product, for each of the groups that `runs` runs
// make.
template <int kBits, size_t kGroup>
inline void sum_groups(Cursor* at, size_t runs, __m512i* partial) {
    constexpr int kFields = Codes<kBits>::kFields;
    __m512i sums[kFields];
    for (__m512i& s : sums) s = _mm512_setzero_si512();
    at->ahead.ask(kAtOnce<kBits, kGroup> * kGroup * kBlockRows * kBits / 8);
#pragma GCC unroll 4
    for (size_t run = 0; run < runs; ++run) add_run<kBits>(at, sums);
    if constexpr (kAtOnce<kBits, kGroup> == 2) {
        partial[0] = total<kBits, 0, kFields / 2>(sums);
        partial[1] = total<kBits, kFields / 2, kFields / 2>(sums);
    } else {
        partial[0] = total<kBits, 0, kFields>(sums);
    }
}

// The float step of gemv_ug.h for one group: acc, in row order.
inline __m128 add_group(__m128 acc, __m512i partial, const uint8_t* scales,
                        const uint8_t* zero_points, float x_scale, int32_t x_sum) {
    partial = _mm512_add_epi32(partial, _mm512_shuffle_epi32(partial, _MM_PERM_BADC));
    partial = _mm512_add_epi32(partial, _mm512_shuffle_epi32(partial, _MM_PERM_CDAB));
    const __m512i first_of_lane =
        _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    __m128i dot = _mm512_castsi512_si128(_mm512_permutexvar_epi32(first_of_lane, partial));
    int32_t four;
    memcpy(&four, zero_points, sizeof(four));
    // zero-point * sum by words: both fit 16 bits, and the upper word of a zero-point is zero.
    dot = _mm_sub_epi32(
        dot, _mm_madd_epi16(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)), _mm_set1_epi32(x_sum)));
    const __m128 scale =
        _mm_mul_ps(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)scales)), _mm_set1_ps(x_scale));
    return _mm_fmadd_ps(_mm_cvtepi32_ps(dot), scale, acc);
}

// A number for each of four groups, four times in the group's lane. four: [4]
inline __m512i spread(const void* four) {
    const __m512i lane_of = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lane_of,
                                    _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)four)));
}

// The same for four whole groups that follow each other, a lane each up to the last step: a third
// of the instructions of four steps. x_scales, x_sums: [4]
inline __m128 add_four_groups(__m128 acc, const __m512i (&partial)[4], const uint8_t* scales,
                              const uint8_t* zero_points, const float* x_scales,
                              const int32_t* x_sums) {
    const auto halve = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const __m512i ab = halve(partial[0], partial[1]);
    const __m512i cd = halve(partial[2], partial[3]);
    // Element 4 * row + group so far.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i sums = _mm512_permutexvar_epi32(
        order, _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
    const __m512i zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)zero_points));
    const __m512 dots =
        _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_madd_epi16(zeros, spread(x_sums))));
    const __m512 factors =
        _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)scales)),
                      _mm512_castsi512_ps(spread(x_scales)));
    acc = _mm_fmadd_ps(_mm512_castps512_ps128(dots), _mm512_castps512_ps128(factors), acc);
    acc = _mm_fmadd_ps(_mm512_extractf32x4_ps(dots, 1), _mm512_extractf32x4_ps(factors, 1), acc);
    acc = _mm_fmadd_ps(_mm512_extractf32x4_ps(dots, 2), _mm512_extractf32x4_ps(factors, 2), acc);
    return _mm_fmadd_ps(_mm512_extractf32x4_ps(dots, 3), _mm512_extractf32x4_ps(factors, 3), acc);
}

// The four outputs of one block.
template <int kBits, size_t kGroup>
inline __m128 dot_block(const PackedMatrix& w, const QuantizedRows& x, const uint8_t* block) {
    constexpr size_t kRun = Codes<kBits>::kRun;
    constexpr size_t kGroups = kAtOnce<kBits, kGroup>;
    constexpr size_t kRuns = kGroups * kGroup / kRun;
    const uint8_t* zero_points = block + w.zero_points_offset;
    Cursor at = {block + w.codes_offset, block + w.high_plane_offset, x.codes, Ahead(w, block)};
    at.ahead.ask(w.codes_offset);  // scales and zero-points
    __m128 acc = _mm_setzero_ps();
    size_t group = 0;
    for (; group + 4 <= w.columns / kGroup; group += 4) {
        __m512i partial[4];
#pragma GCC unroll 4
        for (size_t g = 0; g < 4; g += kGroups) sum_groups<kBits, kGroup>(&at, kRuns, partial + g);
        acc = add_four_groups(acc, partial, block + 8 * group, zero_points + 4 * group,
                              x.scales + group, x.sums + group);
    }
    while (group < w.groups) {  // three whole groups and a short one are left at most
        // The activations behind a short last group are zero.
        const size_t left = (w.padded_columns - group * kGroup) / kRun;
        __m512i partial[kGroups];
        sum_groups<kBits, kGroup>(&at, left < kRuns ? left : kRuns, partial);
        for (size_t g = 0; g < kGroups && group < w.groups; ++g, ++group) {
            acc = add_group(acc, partial[g], block + 8 * group, zero_points + 4 * group,
                            x.scales[group], x.sums[group]);
        }
    }
    return acc;
}

template <int kBits, size_t kGroup>
inline void gemv_rows(const PackedMatrix& w, const QuantizedRows& x, float* y, size_t row_begin,
                      size_t row_end) {
    const uint8_t* block = w.blocks + row_begin / kBlockRows * w.block_bytes;
    for (size_t row = row_begin; row < row_end; row += kBlockRows, block += w.block_bytes) {
        const __m128 four = dot_block<kBits, kGroup>(w, x, block);
        if (row + kBlockRows <= row_end) {
            _mm_storeu_ps(y + row, four);
        } else {  // the matrix ends inside the block
            float all[kBlockRows];
            _mm_storeu_ps(all, four);
            memcpy(y + row, all, (row_end - row) * sizeof(float));
        }
    }
}

template <int kBits>
inline void gemv(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                 size_t row_end) {
    if (w->group_size == 128) {
        gemv_rows<kBits, 128>(*w, *x, y, row_begin, row_end);
    } else if (w->group_size == 64) {
        gemv_rows<kBits, 64>(*w, *x, y, row_begin, row_end);
    } else {
        gemv_rows<kBits, 32>(*w, *x, y, row_begin, row_end);
    }
}

}  // namespace
}  // namespace awqe
