// The register tile of SMMLA: 8 rows by 12 tokens, each register a square of 2 tokens by 2 rows.
// Inside 64 bytes of the weight tile 8 inputs of a row stand beside the same 8 inputs of its
// neighbour; tokens are put side by side in the same way.
#pragma once

#if !defined(__ARM_FEATURE_MATMUL_INT8)
#error "this header needs the compiler options for SMMLA"
#endif

#include "native/kernels/gemm/gemm_neon.h"

namespace awqe {
namespace {

struct I8mmTile {
    static constexpr size_t kTileRows =
        128;  // 64 KB, in the second-level cache: pairing the tokens is paid for by many rows
    static constexpr size_t kTokens = 12;
    static constexpr int kMostPairs = kTokens / 2;

    [[gnu::always_inline]] static inline void store_rows(int8_t* out, int8x16_t r0, int8x16_t r1,
                                                         int8x16_t r2, int8x16_t r3) {
        vst1q_s8(out, first_halves(r0, r1));
        vst1q_s8(out + 16, first_halves(r2, r3));
        vst1q_s8(out + 32, second_halves(r0, r1));
        vst1q_s8(out + 48, second_halves(r2, r3));
    }

    // Up to 12 tokens of a tile's columns, in pairs.
    template <int kPairs>
    struct TokenTile {
        alignas(64)
            int8_t codes[kTileColumns / 8][kPairs][16];  // 8 inputs of a token, 8 of its neighbour
        float scales[kTileGroups][kPairs][4];            // a, a, b, b
        int16_t negated_sums[kTileGroups][kPairs][4];    // a, a, b, b; at most 128 * 127
    };

    template <int kPairs>
    [[gnu::noinline]] static void pair_tokens(const TileColumns& at, const QuantizedRows* x,
                                              size_t token, size_t tokens, TokenTile<kPairs>* out) {
        for (int p = 0; p < kPairs; ++p) {
            // Where there is no token, the last one is computed again and thrown away.
            const size_t last = token + tokens - 1;
            const size_t a = token + 2 * p < last ? token + 2 * p : last;
            const size_t b = a < last ? a + 1 : last;
            const int8_t* codes_a = x->codes + a * x->code_stride + at.begin;
            const int8_t* codes_b = x->codes + b * x->code_stride + at.begin;
            for (size_t k = 0; k < at.columns; k += 32) {
                for (size_t half = 0; half < 2; ++half) {
                    const int8x16_t of_a = vld1q_s8(codes_a + k + 16 * half);
                    const int8x16_t of_b = vld1q_s8(codes_b + k + 16 * half);
                    vst1q_s8(out->codes[k / 8 + 2 * half][p], first_halves(of_a, of_b));
                    vst1q_s8(out->codes[k / 8 + 2 * half + 1][p], second_halves(of_a, of_b));
                }
            }
            const size_t group_a = a * x->group_stride + at.first_group;
            const size_t group_b = b * x->group_stride + at.first_group;
            for (size_t g = 0; g < at.groups; ++g) {
                vst1q_f32(out->scales[g][p], vcombine_f32(vld1_dup_f32(x->scales + group_a + g),
                                                          vld1_dup_f32(x->scales + group_b + g)));
                const int32x4_t sums = vcombine_s32(vld1_dup_s32(x->sums + group_a + g),
                                                    vld1_dup_s32(x->sums + group_b + g));
                vst1_s16(out->negated_sums[g][p], vmovn_s32(vnegq_s32(sums)));
            }
        }
    }

    // One group of kBlocks blocks and kPairs pairs of tokens. The running sums wait in acc, squares
    // like the integer ones, because the integer tile needs the registers.
    template <int kBlocks, int kPairs>
    [[gnu::always_inline]] static inline void add_tile_group(const WeightTile<kTileRows>& tile,
                                                             size_t block, size_t group,
                                                             const int8_t* codes, size_t columns,
                                                             const int8_t (*x)[kPairs][16],
                                                             const TokenTile<kPairs>& tokens,
                                                             float (*acc)[2 * kBlocks][4]) {
        int32x4_t sums[kPairs][2 * kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            const int32x2_t z = vreinterpret_s32_s16(vld1_s16(tile.zero_points[block + b][group]));
            const int16x4_t z01 = vreinterpret_s16_s32(vdup_lane_s32(z, 0));
            const int16x4_t z23 = vreinterpret_s16_s32(vdup_lane_s32(z, 1));
            for (int p = 0; p < kPairs; ++p) {
                const int16x4_t x_sums = vld1_s16(tokens.negated_sums[group][p]);
                sums[p][2 * b] = vmull_s16(x_sums, z01);
                sums[p][2 * b + 1] = vmull_s16(x_sums, z23);
            }
        }
        for (; columns > 0; columns -= 32) {
            for (int eight = 0; eight < 4; ++eight) {
                int8x16_t w[2 * kBlocks];
                for (int b = 0; b < kBlocks; ++b) {
                    const int8_t* of_block = codes + b * sizeof(tile.codes[0]) + 32 * eight;
                    w[2 * b] = vld1q_s8(of_block);
                    w[2 * b + 1] = vld1q_s8(of_block + 16);
                }
                for (int p = 0; p < kPairs; ++p) {
                    const int8x16_t pair = vld1q_s8(x[eight][p]);
                    for (int r = 0; r < 2 * kBlocks; ++r)
                        sums[p][r] = vmmlaq_s32(sums[p][r], pair, w[r]);
                }
            }
            codes += 128;
            x += 4;
        }
        float32x4_t scales[2 * kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            const float32x4_t four = vld1q_f32(tile.scales[block + b][group]);
            scales[2 * b] = vcombine_f32(vget_low_f32(four), vget_low_f32(four));
            scales[2 * b + 1] = vcombine_f32(vget_high_f32(four), vget_high_f32(four));
        }
        for (int p = 0; p < kPairs; ++p) {
            const float32x4_t x_scales = vld1q_f32(tokens.scales[group][p]);
            for (int r = 0; r < 2 * kBlocks; ++r) {
                const float32x4_t scale = vmulq_f32(scales[r], x_scales);
                vst1q_f32(acc[p][r],
                          vfmaq_f32(vld1q_f32(acc[p][r]), vcvtq_f32_s32(sums[p][r]), scale));
            }
        }
        asm volatile("" ::: "memory");
    }

    template <int kBlocks, int kPairs>
    [[gnu::noinline]] static void multiply_blocks(const WeightTile<kTileRows>& tile, size_t block,
                                                  const TileColumns& at,
                                                  const TokenTile<kPairs>& tokens, size_t count,
                                                  const Outputs& outputs) {
        float squares[kPairs][2 * kBlocks][4];
        float (*acc)[2 * kBlocks][4] = squares;
        asm(""
            : "+r"(acc));  // an address that the compiler cannot follow: the running sums stay in
                           // memory
        for (int p = 0; p < kPairs; ++p) {
            const size_t a = 2u * p < count ? 2u * p : count - 1;
            const size_t b = a + 1 < count ? a + 1 : a;
            for (int i = 0; i < kBlocks; ++i) {
                const float64x2_t of_a = vreinterpretq_f64_f32(outputs.load(a, block + i));
                const float64x2_t of_b = vreinterpretq_f64_f32(outputs.load(b, block + i));
                vst1q_f32(acc[p][2 * i], vreinterpretq_f32_f64(vzip1q_f64(of_a, of_b)));
                vst1q_f32(acc[p][2 * i + 1], vreinterpretq_f32_f64(vzip2q_f64(of_a, of_b)));
            }
        }
        const int8_t* codes = tile.codes[block][0];
        const int8_t (*x)[kPairs][16] = tokens.codes;
        for (size_t g = 0; g < at.groups; ++g) {
            const size_t columns = at.columns_of(g);
            add_tile_group<kBlocks, kPairs>(tile, block, g, codes, columns, x, tokens, acc);
            codes += kBlockRows * columns;
            x += columns / 8;
        }
        for (int p = 0; p < kPairs; ++p) {
            const size_t a = 2 * p;
            for (int b = 0; b < kBlocks; ++b) {
                const float64x2_t left = vreinterpretq_f64_f32(vld1q_f32(acc[p][2 * b]));
                const float64x2_t right = vreinterpretq_f64_f32(vld1q_f32(acc[p][2 * b + 1]));
                if (a < count)
                    outputs.store(a, block + b, vreinterpretq_f32_f64(vzip1q_f64(left, right)));
                if (a + 1 < count)
                    outputs.store(a + 1, block + b, vreinterpretq_f32_f64(vzip2q_f64(left, right)));
            }
        }
    }

    template <int kPairs>
    [[gnu::noinline]] static void multiply_pairs(const WeightTile<kTileRows>& tile,
                                                 const TileColumns& at, const QuantizedRows* x,
                                                 size_t token, size_t count,
                                                 const Outputs& outputs) {
        TokenTile<kPairs> tokens;
        pair_tokens(at, x, token, count, &tokens);
        size_t block = 0;
        for (; block + 2 <= tile.blocks; block += 2) {
            multiply_blocks<2, kPairs>(tile, block, at, tokens, count, outputs);
        }
        if (block < tile.blocks)
            multiply_blocks<1, kPairs>(tile, block, at, tokens, count, outputs);
    }

    static void multiply(const WeightTile<kTileRows>& tile, const TileColumns& at,
                         const QuantizedRows* x, size_t token, size_t tokens,
                         const Outputs& outputs) {
        if (tokens > 8) {
            multiply_pairs<6>(tile, at, x, token, tokens, outputs);
        } else if (tokens > 6) {
            multiply_pairs<4>(tile, at, x, token, tokens, outputs);
        } else if (tokens > 4) {
            multiply_pairs<3>(tile, at, x, token, tokens, outputs);
        } else if (tokens > 2) {
            multiply_pairs<2>(tile, at, x, token, tokens, outputs);
        } else {
            multiply_pairs<1>(tile, at, x, token, tokens, outputs);
        }
    }

  private:
    [[gnu::always_inline]] static inline int8x16_t first_halves(int8x16_t a, int8x16_t b) {
        return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
    }
    [[gnu::always_inline]] static inline int8x16_t second_halves(int8x16_t a, int8x16_t b) {
        return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
    }
};

}  // namespace
}  // namespace awqe
