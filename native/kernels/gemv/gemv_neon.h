// The matrix-vector product on 128-bit registers, one algorithm for every bit width and for SMLAL
// and SDOT: a row of a block has one running sum per group; a group ends with one fused
// multiply-add for the block's four rows (gemv_ug.h).
//
// Owns the walk over blocks, groups and runs. How codes expand stands in codes_neon.h, how products
// are added in the Sum types of sums_neon.h and sums_neon_dotprod.h. Internal linkage throughout.
#pragma once

#include "native/kernels/codes/codes_neon.h"
#include "native/kernels/codes/sums_neon.h"
#include "native/kernels/gemv/gemv_ug.h"

namespace awqe {
namespace {

// Where a block's reading stands.
struct Cursor {
    const uint8_t* low;
    const uint8_t* high;
    const int8_t* x;
};

template <int kBits, class Sum>
[[gnu::always_inline]] inline void add_rows(const Cursor& at, int pair,
                                            const int8x16_t (&x)[Codes<kBits>::kFields],
                                            Sum (&first)[4], Sum (&second)[4]) {
    constexpr int kFields = Codes<kBits>::kFields;
    int8x16_t codes[2][kFields];
    Codes<kBits>::expand(at.low, at.high, pair, codes);
    for (int f = 0; f < kFields; ++f) {
        for (int r = 0; r < 2; ++r)
            (f < kFields / 2 ? first : second)[2 * pair + r].add(codes[r][f], x[f]);
    }
}

// Adds one run to the four rows' sums and steps over it. Where a run holds two groups (g = 32
// and a run of 64), the second half of the fields goes to `second`; otherwise both are the same
// array.
template <int kBits, class Sum>
[[gnu::always_inline]] inline void add_run(Cursor* at, Sum (&first)[4], Sum (&second)[4]) {
    constexpr int kFields = Codes<kBits>::kFields;
    if constexpr (Sum::kPrefetchBytes != 0) {
        for (size_t line = 0; line < Codes<kBits>::kLowBytes; line += 64) {
            __builtin_prefetch(at->low + Sum::kPrefetchBytes + line);
        }
        if constexpr (Codes<kBits>::kHighBytes != 0) {
            __builtin_prefetch(at->high + Sum::kPrefetchBytes * Codes<kBits>::kHighBytes /
                                              Codes<kBits>::kLowBytes);
        }
    }
    int8x16_t x[kFields];
    for (int f = 0; f < kFields; ++f) x[f] = vld1q_s8(at->x + 16 * f);
    add_rows<kBits>(*at, 0, x, first, second);
    add_rows<kBits>(*at, 1, x, first, second);
    at->low += Codes<kBits>::kLowBytes;
    at->high += Codes<kBits>::kHighBytes;
    at->x += Codes<kBits>::kRun;
    // Nothing moves over this line: compilers otherwise gather the loads and multiplications of a
    // whole group, and spill.
    asm volatile(""
                 : "+w"(first[0].lanes), "+w"(first[1].lanes), "+w"(first[2].lanes),
                   "+w"(first[3].lanes)
                 :
                 : "memory");
}

// The dots of the next `runs` runs with the block's four rows: for the last group of a row.
template <int kBits, class Sum>
[[gnu::always_inline]] inline int32x4_t dot_runs(Cursor* at, size_t runs) {
    Sum sums[4];
    for (Sum& sum : sums) sum.clear();
    for (size_t run = 0; run < runs; ++run) add_run<kBits>(at, sums, sums);
    return Sum::total(sums);
}

// The same for a number known when compiling, written out: the loop's own instructions would be a
// tenth of the body.
template <int kBits, class Sum, size_t kRuns>
[[gnu::always_inline]] inline int32x4_t dot_runs(Cursor* at) {
    Sum sums[4];
    for (Sum& sum : sums) sum.clear();
    add_run<kBits>(at, sums, sums);
    if constexpr (kRuns >= 2) add_run<kBits>(at, sums, sums);
    if constexpr (kRuns >= 3) add_run<kBits>(at, sums, sums);
    if constexpr (kRuns >= 4) add_run<kBits>(at, sums, sums);
    static_assert(kRuns <= 4);
    return Sum::total(sums);
}

// The four outputs of one block: groups of kGroup inputs, two at a time.
template <int kBits, class Sum, size_t kGroup>
[[gnu::always_inline]] inline float32x4_t dot_block(const PackedMatrix* w, const QuantizedRows* x,
                                                    const uint8_t* block) {
    constexpr size_t kRun = Codes<kBits>::kRun;
    const uint8_t* zero_points = block + w->zero_points_offset;
    Cursor at = {block + w->codes_offset, block + w->high_plane_offset, x->codes};
    float32x4_t acc = vdupq_n_f32(0.0f);
    // A short last group is another number of runs, unless it shares a run with its neighbour:
    // activations behind it are zero.
    const size_t whole = w->columns / kGroup;
    const size_t alike = kGroup >= kRun ? whole : w->groups;
    size_t group = 0;
    for (; group + 2 <= alike; group += 2) {
        int32x4_t dots[2];
        if constexpr (kGroup >= kRun) {
            dots[0] = dot_runs<kBits, Sum, kGroup / kRun>(&at);
            dots[1] = dot_runs<kBits, Sum, kGroup / kRun>(&at);
        } else {
            Sum first[4];
            Sum second[4];
            for (int r = 0; r < 4; ++r) {
                first[r].clear();
                second[r].clear();
            }
            add_run<kBits>(&at, first, second);
            dots[0] = Sum::total(first);
            dots[1] = Sum::total(second);
        }
        const GroupPair pair = load_group_pair<kBits>(block + 8 * group, zero_points + 4 * group,
                                                      x->scales + group, x->sums + group);
        acc = add_group<0>(acc, dots[0], pair);
        acc = add_group<1>(acc, dots[1], pair);
    }
    for (; group < w->groups; ++group) {
        const GroupPair last = load_last_group<kBits>(block + 8 * group, zero_points + 4 * group,
                                                      x->scales + group, x->sums + group);
        const size_t columns = group < whole ? kGroup : w->padded_columns - group * kGroup;
        acc =
            add_group<0>(acc, dot_runs<kBits, Sum>(&at, kGroup >= kRun ? columns / kRun : 1), last);
    }
    return acc;
}

template <int kBits, class Sum, size_t kGroup>
[[gnu::noinline]] void gemv_rows(const PackedMatrix* w, const QuantizedRows* x, float* y,
                                 size_t row_begin, size_t row_end) {
    for (size_t row = row_begin; row < row_end; row += kBlockRows) {
        const uint8_t* block = w->blocks + row / kBlockRows * w->block_bytes;
        const float32x4_t acc = dot_block<kBits, Sum, kGroup>(w, x, block);
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
inline void gemv(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                 size_t row_end) {
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
