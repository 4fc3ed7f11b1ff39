// The register tile of SDOT: 8 rows by 8 tokens. Inside 64 bytes of the weight tile the four rows
// alternate every 4 inputs, so a register's lanes are rows and SDOT by lane adds straight into four
// outputs: no sum is left to add up at a group's end.
#pragma once

#ifndef __ARM_FEATURE_DOTPROD
#error "this header needs the compiler options for SDOT"
#endif

#include "native/kernels/gemm/gemm_neon.h"

namespace awqe {
namespace {

struct DotprodTile {
    static constexpr size_t kTileRows = 32;  // 16 KB of the Cortex-A76's 64 KB
    static constexpr size_t kTokens = 8;

    [[gnu::always_inline]] static inline void store_rows(int8_t* out, int8x16_t r0, int8x16_t r1,
                                                         int8x16_t r2, int8x16_t r3) {
        const int32x4x4_t rows = {{vreinterpretq_s32_s8(r0), vreinterpretq_s32_s8(r1),
                                   vreinterpretq_s32_s8(r2), vreinterpretq_s32_s8(r3)}};
        vst4q_s32((int32_t*)out, rows);
    }

    // One group of kBlocks blocks and kCount tokens, from input k of the tile on. The running sums
    // wait in acc, because the integer tile needs the registers.
    template <int kBlocks, int kCount>
    [[gnu::always_inline]] static inline void add_group(const WeightTile<kTileRows>& tile,
                                                        size_t block, size_t group, size_t k,
                                                        size_t end, const Tokens<kCount>& tokens,
                                                        float (*acc)[kBlocks][4]) {
        int32x4_t sums[kCount][kBlocks];
        for (int t = 0; t < kCount; ++t) {
            const int16x4_t x_sum = vld1_dup_s16(&tokens.negated_sums[group][t]);
            for (int b = 0; b < kBlocks; ++b)
                sums[t][b] = vmull_s16(vld1_s16(tile.zero_points[block + b][group]), x_sum);
        }
        const int8_t* codes = tile.codes[block][k / 16];
        for (; k < end; k += 16) {
            int8x16_t x[kCount];
            for (int t = 0; t < kCount; ++t) x[t] = vld1q_s8(tokens.codes[t] + k);
            for (int b = 0; b < kBlocks; ++b) {
                const int8_t* w = codes + b * sizeof(tile.codes[0]);
                const int8x16_t w0 = vld1q_s8(w);
                const int8x16_t w1 = vld1q_s8(w + 16);
                for (int t = 0; t < kCount; ++t)
                    sums[t][b] = vdotq_laneq_s32(sums[t][b], w0, x[t], 0);
                for (int t = 0; t < kCount; ++t)
                    sums[t][b] = vdotq_laneq_s32(sums[t][b], w1, x[t], 1);
                const int8x16_t w2 = vld1q_s8(w + 32);
                const int8x16_t w3 = vld1q_s8(w + 48);
                for (int t = 0; t < kCount; ++t)
                    sums[t][b] = vdotq_laneq_s32(sums[t][b], w2, x[t], 2);
                for (int t = 0; t < kCount; ++t)
                    sums[t][b] = vdotq_laneq_s32(sums[t][b], w3, x[t], 3);
            }
            codes += 64;
        }
        float32x4_t scales[kBlocks];
        for (int b = 0; b < kBlocks; ++b) scales[b] = vld1q_f32(tile.scales[block + b][group]);
        for (int t = 0; t < kCount; ++t) {
            for (int b = 0; b < kBlocks; ++b) {
                const float32x4_t scale = vmulq_n_f32(scales[b], tokens.scales[group][t]);
                vst1q_f32(acc[t][b],
                          vfmaq_f32(vld1q_f32(acc[t][b]), vcvtq_f32_s32(sums[t][b]), scale));
            }
        }
        asm volatile("" ::: "memory");
    }

    template <int kBlocks, int kCount>
    [[gnu::noinline]] static void multiply_blocks(const WeightTile<kTileRows>& tile, size_t block,
                                                  const TileColumns& at,
                                                  const Tokens<kCount>& tokens,
                                                  const Outputs& outputs) {
        float outputs_so_far[kCount][kBlocks][4];
        float (*acc)[kBlocks][4] = outputs_so_far;
        asm(""
            : "+r"(acc));  // an address that the compiler cannot follow: the running sums stay in
                           // memory
        for (int t = 0; t < kCount; ++t) {
            for (int b = 0; b < kBlocks; ++b) vst1q_f32(acc[t][b], outputs.load(t, block + b));
        }
        size_t k = 0;
        for (size_t g = 0; g < at.groups; ++g) {
            const size_t end = k + at.columns_of(g);
            add_group<kBlocks, kCount>(tile, block, g, k, end, tokens, acc);
            k = end;
        }
        for (int t = 0; t < kCount; ++t) {
            for (int b = 0; b < kBlocks; ++b) outputs.store(t, block + b, vld1q_f32(acc[t][b]));
        }
    }

    template <int kCount>
    static void multiply_tokens(const WeightTile<kTileRows>& tile, const TileColumns& at,
                                const QuantizedRows* x, size_t token, const Outputs& outputs) {
        const Tokens<kCount> tokens(x, at, token);
        size_t block = 0;
        for (; block + 2 <= tile.blocks; block += 2)
            multiply_blocks<2, kCount>(tile, block, at, tokens, outputs);
        if (block < tile.blocks) multiply_blocks<1, kCount>(tile, block, at, tokens, outputs);
    }

    static void multiply(const WeightTile<kTileRows>& tile, const TileColumns& at,
                         const QuantizedRows* x, size_t token, size_t tokens,
                         const Outputs& outputs) {
        switch (tokens) {
            case 1:
                return multiply_tokens<1>(tile, at, x, token, outputs);
            case 2:
                return multiply_tokens<2>(tile, at, x, token, outputs);
            case 3:
                return multiply_tokens<3>(tile, at, x, token, outputs);
            case 4:
                return multiply_tokens<4>(tile, at, x, token, outputs);
            case 5:
                return multiply_tokens<5>(tile, at, x, token, outputs);
            case 6:
                return multiply_tokens<6>(tile, at, x, token, outputs);
            case 7:
                return multiply_tokens<7>(tile, at, x, token, outputs);
            default:
                return multiply_tokens<8>(tile, at, x, token, outputs);
        }
    }
};

}  // namespace
}  // namespace awqe
