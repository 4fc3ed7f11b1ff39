// The matrix-vector product with AVX-512 VNNI, one algorithm for every bit width: a 128-bit lane is
// a row of the block, so that one register of codes meets one broadcast of 16 activations
// (gemv_ug.h).
//
// Owns the walk over blocks, groups and runs; codes_avx512.h says how codes expand. Internal
// linkage throughout.
#pragma once

#include <string.h>

#include "native/kernels/codes/codes_avx512.h"
#include "native/kernels/gemv/gemv_ug.h"

namespace awqe {
namespace {

// How far ahead of the reading the next lines are asked for. The 3-bit codes are two streams a
// block apart and need it most: at 4 KB they ran at 70 % of the read bandwidth, from 8 KB on at all
// of it.
constexpr size_t kPrefetchBytes = 12288;

// Where a block's reading stands.
struct Cursor {
    const uint8_t* low;
    const uint8_t* high;
    const int8_t* x;
};

// Adds one run to two registers of partial sums: field f goes to sums[f / kHalf % 2].
template <int kBits, int kHalf>
inline void add_run(Cursor* at, __m512i (&sums)[2]) {
    using Run = Codes<kBits>;
    for (size_t line = 0; line < Run::kLowBytes; line += 64) {
        _mm_prefetch((const char*)at->low + kPrefetchBytes + line, _MM_HINT_T0);
    }
    if (Run::kHighBytes != 0) {
        _mm_prefetch((const char*)at->high + kPrefetchBytes, _MM_HINT_T0);
    }
    __m512i fields[Run::kFields];
    Run::expand(at->low, at->high, fields);
#pragma GCC unroll 4
    for (int f = 0; f < Run::kFields; ++f) {
        const __m512i x = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)(at->x + 16 * f)));
        sums[f / kHalf % 2] = _mm512_dpbusd_epi32(sums[f / kHalf % 2], fields[f], x);
    }
    at->low += Run::kLowBytes;
    at->high += Run::kHighBytes;
    at->x += Run::kRun;
}

// A number for each row, four times in the row's lane. four: [4]
inline __m512i spread(__m128i four) {
    const __m512i lane_of = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lane_of, _mm512_castsi128_si512(four));
}

// The float step of gemv_ug.h for one group. partial: four int32 a row, whose sum is the row's dot
// product.
inline __m512 add_group(__m512 acc, __m512i partial, const uint8_t* scales,
                        const uint8_t* zero_points, float x_scale, int32_t x_sum) {
    partial = _mm512_add_epi32(partial, _mm512_shuffle_epi32(partial, _MM_PERM_BADC));
    partial = _mm512_add_epi32(partial, _mm512_shuffle_epi32(partial, _MM_PERM_CDAB));
    int32_t four;
    memcpy(&four, zero_points, sizeof(four));
    const __m512i zeros = spread(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
    const __m512i dot =
        _mm512_sub_epi32(partial, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(x_sum)));
    const __m128 scale =
        _mm_mul_ps(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)scales)), _mm_set1_ps(x_scale));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                           _mm512_castsi512_ps(spread(_mm_castps_si128(scale))), acc);
}

// The four outputs of one block.
template <int kBits, size_t kGroup>
inline __m128 dot_block(const PackedMatrix& w, const QuantizedRows& x, const uint8_t* block) {
    constexpr size_t kRun = Codes<kBits>::kRun;
    const uint8_t* zero_points = block + w.zero_points_offset;
    Cursor at = {block + w.codes_offset, block + w.high_plane_offset, x.codes};
    for (size_t line = 0; line < w.codes_offset; line += 64) {  // scales and zero-points
        _mm_prefetch((const char*)block + kPrefetchBytes + line, _MM_HINT_T0);
    }
    __m512 acc = _mm512_setzero_ps();
    const size_t whole = w.columns / kGroup;
    for (size_t group = 0; group < w.groups; ++group) {
        __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        if constexpr (kGroup < kRun) {  // a run holds two groups
            add_run<kBits, 2>(&at, sums);
            acc = add_group(acc, sums[0], block + 8 * group, zero_points + 4 * group,
                            x.scales[group], x.sums[group]);
            if (++group == w.groups) break;
            acc = add_group(acc, sums[1], block + 8 * group, zero_points + 4 * group,
                            x.scales[group], x.sums[group]);
        } else {
            if (group < whole) {
                for (size_t run = 0; run < kGroup / kRun; ++run) add_run<kBits, 1>(&at, sums);
            } else {  // a short last group: the activations behind it are zero
                const size_t runs = (w.padded_columns - group * kGroup) / kRun;
                for (size_t run = 0; run < runs; ++run) add_run<kBits, 1>(&at, sums);
            }
            acc = add_group(acc, _mm512_add_epi32(sums[0], sums[1]), block + 8 * group,
                            zero_points + 4 * group, x.scales[group], x.sums[group]);
        }
    }
    const __m512i first_of_lane =
        _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_lane, acc));
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
