// The matrix-vector product on 128-bit registers, one algorithm for every bit width and for SMLAL and SDOT: a row of a block
// has one running sum per group; a group ends with one fused multiply-add for the block's four rows (gemv_ug.h).
//
// Owns the walk over blocks, groups and runs. How codes expand stands in codes_neon.h, how products are added in the Sum
// types: Int16Sum and Int32Sum here, one more in sum_neon_dotprod.h. Internal linkage throughout.
#pragma once

#include "native/kernels/codes/codes_neon.h"
#include "native/kernels/gemv/gemv_ug.h"

namespace awqe {
namespace {

// A Sum adds 16 products at a time for one row; total() gives the sums of four rows.

// 2, 3 and 4 bits: a group of 128 inputs puts 16 products into each 16-bit lane, at most 16 * 15 * 127 = 30,480, so nothing is
// widened before the group's end. SMLAL is the only multiplication here: the Cortex-A72 starts one per cycle.
struct Int16Sum {
    int16x8_t lanes;

    [[gnu::always_inline]] inline void clear() { lanes = vdupq_n_s16(0); }
    [[gnu::always_inline]] inline void add(int8x16_t codes, int8x16_t x) {
        lanes = vmlal_s8(lanes, vget_low_s8(codes), vget_low_s8(x));
        lanes = vmlal_high_s8(lanes, codes, x);
    }
    [[gnu::always_inline]] static inline int32x4_t total(const Int16Sum (&s)[4]) {
        return vpaddq_s32(vpaddq_s32(vpaddlq_s16(s[0].lanes), vpaddlq_s16(s[1].lanes)),
                          vpaddq_s32(vpaddlq_s16(s[2].lanes), vpaddlq_s16(s[3].lanes)));
    }
};

// 8 bits: two products are all that a 16-bit lane holds, 2 * 128 * 127 = 32,512.
struct Int32Sum {
    int32x4_t lanes;

    [[gnu::always_inline]] inline void clear() { lanes = vdupq_n_s32(0); }
    [[gnu::always_inline]] inline void add(int8x16_t codes, int8x16_t x) {
        const int16x8_t products = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
        lanes = vpadalq_s16(lanes, vmlal_high_s8(products, codes, x));
    }
    [[gnu::always_inline]] static inline int32x4_t total(const Int32Sum (&s)[4]) {
        return vpaddq_s32(vpaddq_s32(s[0].lanes, s[1].lanes), vpaddq_s32(s[2].lanes, s[3].lanes));
    }
};

// Ahead of the reading by the time that a DRAM access takes on a Cortex-A72 which reads 4 to 5 GB/s.
constexpr size_t kPrefetchBytes = 1024;

// Where a block's reading stands.
struct Cursor {
    const uint8_t* low;
    const uint8_t* high;
    const int8_t* x;
};

template <int kBits>
[[gnu::always_inline]] inline void advance(Cursor* at) {
    at->low += Codes<kBits>::kLowBytes;
    at->high += Codes<kBits>::kHighBytes;
    at->x += Codes<kBits>::kRun;
}

// Adds one run to the four rows' sums. With two groups to a run (2 and 3 bits, g = 32) the second half of the fields goes to
// `second`; otherwise both are the same array.
template <int kBits, class Sum>
[[gnu::always_inline]] inline void add_run(const Cursor& at, Sum (&first)[4], Sum (&second)[4]) {
    constexpr int kFields = Codes<kBits>::kFields;
    for (size_t line = 0; line < Codes<kBits>::kLowBytes; line += 64) {
        __builtin_prefetch(at.low + kPrefetchBytes + line);
    }
    if (Codes<kBits>::kHighBytes != 0) __builtin_prefetch(at.high + kPrefetchBytes / 2);
    int8x16_t x[kFields];
    for (int f = 0; f < kFields; ++f) x[f] = vld1q_s8(at.x + 16 * f);
    for (int pair = 0; pair < 2; ++pair) {
        int8x16_t codes[2][kFields];
        Codes<kBits>::expand(at.low, at.high, pair, codes);
        for (int f = 0; f < kFields; ++f) {
            for (int r = 0; r < 2; ++r) {
                (f < kFields / 2 ? first : second)[2 * pair + r].add(codes[r][f], x[f]);
            }
        }
    }
}

template <int kBits, class Sum>
[[gnu::always_inline]] inline float32x4_t end_group(float32x4_t acc, const Sum (&sums)[4], const uint8_t* block,
                                                    const PackedMatrix* w, const QuantizedRows* x, size_t group) {
    const int32x4_t z = load_zero_points<kBits>(block + w->zero_points_offset + 4 * group);
    const int32x4_t d = vmlsq_n_s32(Sum::total(sums), z, x->sums[group]);
    const float32x4_t scale = vmulq_n_f32(load_scales(block + 8 * group), x->scales[group]);
    return vfmaq_f32(acc, vcvtq_f32_s32(d), scale);
}

// The four outputs of one block whose groups are kGroup inputs: one or more whole runs.
template <int kBits, class Sum, size_t kGroup>
[[gnu::always_inline]] inline float32x4_t dot_block(const PackedMatrix* w, const QuantizedRows* x, const uint8_t* block) {
    Cursor at = {block + w->codes_offset, block + w->high_plane_offset, x->codes};
    float32x4_t acc = vdupq_n_f32(0.0f);
    Sum sums[4];
    const size_t whole = w->columns / kGroup;
    for (size_t group = 0; group < whole; ++group) {
        for (Sum& sum : sums) sum.clear();
        for (size_t run = 0; run < kGroup / Codes<kBits>::kRun; ++run) {
            add_run<kBits>(at, sums, sums);
            advance<kBits>(&at);
        }
        acc = end_group<kBits>(acc, sums, block, w, x, group);
    }
    if (whole < w->groups) {  // the last group is short
        for (Sum& sum : sums) sum.clear();
        for (size_t run = 0; run < (w->padded_columns - whole * kGroup) / Codes<kBits>::kRun; ++run) {
            add_run<kBits>(at, sums, sums);
            advance<kBits>(&at);
        }
        acc = end_group<kBits>(acc, sums, block, w, x, whole);
    }
    return acc;
}

// The same where a run holds two groups; the last run may hold one.
template <int kBits, class Sum>
[[gnu::always_inline]] inline float32x4_t dot_block_half_runs(const PackedMatrix* w, const QuantizedRows* x,
                                                              const uint8_t* block) {
    Cursor at = {block + w->codes_offset, block + w->high_plane_offset, x->codes};
    float32x4_t acc = vdupq_n_f32(0.0f);
    Sum first[4];
    Sum second[4];
    for (size_t group = 0; group < w->groups; group += 2) {
        for (int r = 0; r < 4; ++r) {
            first[r].clear();
            second[r].clear();
        }
        add_run<kBits>(at, first, second);
        advance<kBits>(&at);
        acc = end_group<kBits>(acc, first, block, w, x, group);
        if (group + 1 < w->groups) acc = end_group<kBits>(acc, second, block, w, x, group + 1);
    }
    return acc;
}

template <int kBits, class Sum, size_t kGroup>
[[gnu::noinline]] void gemv_rows(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin, size_t row_end) {
    for (size_t row = row_begin; row < row_end; row += kBlockRows) {
        const uint8_t* block = w->blocks + row / kBlockRows * w->block_bytes;
        float32x4_t acc;
        if constexpr (kGroup < Codes<kBits>::kRun) {
            acc = dot_block_half_runs<kBits, Sum>(w, x, block);
        } else {
            acc = dot_block<kBits, Sum, kGroup>(w, x, block);
        }
        if (row + kBlockRows <= row_end) {
            vst1q_f32(y + row, acc);
        } else {  // the matrix ends inside the block
            float four[kBlockRows];
            vst1q_f32(four, acc);
            for (size_t r = row; r < row_end; ++r) y[r] = four[r - row];
        }
    }
}

template <int kBits, class Sum>
inline void gemv(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin, size_t row_end) {
    if (w->group_size == 128) {
        gemv_rows<kBits, Sum, 128>(w, x, y, row_begin, row_end);
    } else if (w->group_size == 64) {
        gemv_rows<kBits, Sum, 64>(w, x, y, row_begin, row_end);
    } else {
        gemv_rows<kBits, Sum, 32>(w, x, y, row_begin, row_end);
    }
}

}  // namespace
}  // namespace awqe
