// The register tile of armv8.0: 4 rows by 4 tokens, products added by a Sum of sums_neon.h. The
// bytes of the weight tile keep the order of the rows: 16 inputs of row 0, 1, 2, 3.
#pragma once

#include "native/kernels/codes/sums_neon.h"
#include "native/kernels/gemm/gemm_neon.h"

namespace awqe {
namespace {

template <class Sum>
struct NeonTile {
    static constexpr size_t kTileRows =
        32;  // 16 KB of the Cortex-A72's 32 KB, beside 2 KB of activations
    static constexpr size_t kTokens = 4;

    [[gnu::always_inline]] static inline void store_rows(int8_t* out, int8x16_t r0, int8x16_t r1,
                                                         int8x16_t r2, int8x16_t r3) {
        vst1q_s8(out, r0);
        vst1q_s8(out + 16, r1);
        vst1q_s8(out + 32, r2);
        vst1q_s8(out + 48, r3);
    }

    // Adds the products of 16 inputs, from input k of the tile on.
    template <int kCount>
    [[gnu::always_inline]] static inline void add_inputs(const int8_t* codes,
                                                         const Tokens<kCount>& tokens, size_t k,
                                                         Sum (&sums)[kCount][4]) {
        int8x16_t rows[4];
        for (int r = 0; r < 4; ++r) rows[r] = vld1q_s8(codes + 16 * r);
        for (int t = 0; t < kCount; ++t) {
            const int8x16_t one = vld1q_s8(tokens.codes[t] + k);
            for (int r = 0; r < 4; ++r) sums[t][r].add(rows[r], one);
        }
    }

    template <int kCount>
    [[gnu::noinline]] static void multiply_tokens(const WeightTile<kTileRows>& tile,
                                                  const TileColumns& at, const QuantizedRows* x,
                                                  size_t token, const Outputs& outputs) {
        const Tokens<kCount> tokens(x, at, token);
        for (size_t b = 0; b < tile.blocks; ++b) {
            float32x4_t acc[kCount];
            for (int t = 0; t < kCount; ++t) acc[t] = outputs.load(t, b);
            const int8_t* codes = tile.codes[b][0];
            size_t k = 0;
            for (size_t g = 0; g < at.groups; ++g) {
                Sum sums[kCount][4];
                for (int t = 0; t < kCount; ++t) {
                    for (int r = 0; r < 4; ++r) sums[t][r].clear();
                }
                for (const size_t end = k + at.columns_of(g); k < end; k += 32) {
                    add_inputs<kCount>(codes, tokens, k, sums);
                    add_inputs<kCount>(codes + 64, tokens, k + 16, sums);
                    codes += 128;
                }
                const int16x4_t z = vld1_s16(tile.zero_points[b][g]);
                const float32x4_t scales = vld1q_f32(tile.scales[b][g]);
                for (int t = 0; t < kCount; ++t) {
                    const int32x4_t d =
                        vmlal_s16(Sum::total(sums[t]), z, vld1_dup_s16(&tokens.negated_sums[g][t]));
                    const float32x4_t scale = vmulq_n_f32(scales, tokens.scales[g][t]);
                    acc[t] = vfmaq_f32(acc[t], vcvtq_f32_s32(d), scale);
                }
            }
            for (int t = 0; t < kCount; ++t) outputs.store(t, b, acc[t]);
        }
    }

    static void multiply(const WeightTile<kTileRows>& tile, const TileColumns& at,
                         const QuantizedRows* x, size_t token, size_t tokens,
                         const Outputs& outputs) {
        if (tokens == 4) {
            multiply_tokens<4>(tile, at, x, token, outputs);
        } else if (tokens == 3) {
            multiply_tokens<3>(tile, at, x, token, outputs);
        } else if (tokens == 2) {
            multiply_tokens<2>(tile, at, x, token, outputs);
        } else {
            multiply_tokens<1>(tile, at, x, token, outputs);
        }
    }
};

}  // namespace
}  // namespace awqe
