// Packed matrices times many rows of quantised inputs: reading a prompt. Tiles of 128 outputs x 128
// tokens; a step is one chunk of 128 inputs, whose packed weights and activations travel to shared
// memory three steps ahead. Weights are unpacked in registers once for all tokens of a warp.
//
// One float accumulator per output, groups ascending: native/ARITHMETIC.md, section 3. The integer
// accumulators begin at 0x4b400000, so that they read as the float 1.5 * 2^23 + D when the products
// are through: one subtraction gives float(D) exactly, since |D| < 2^22, where a conversion takes a
// slower unit. Zero-points of up to 6 bits are subtracted from the codes when these are unpacked,
// once for all tokens: the operand is then a signed byte, and the sum is the same integer. At 8
// bits code - zero-point needs a ninth bit; there they are subtracted as elsewhere.
#pragma once

#include "attention.cuh"
#include "fragments.cuh"

namespace awqe_cuda {

constexpr int kGemmOutputs = 128;
constexpr int kGemmTokens = 128;
constexpr int kGemmThreads = 512;  // 16 warps: four for each scheduler hide what a product takes
constexpr int kGemmStages = 3;
constexpr int kGemmBlocks = kGemmOutputs / kBlockRows;

// One step's share of shared memory.
template <int kBits, int kParts>
struct GemmStage {
    static constexpr int kCodeBytes = kChunk * kBlockRows * kLowBits<kBits> / 8;
    static constexpr int kHighBytes = kChunk * kBlockRows * (kBits - kLowBits<kBits>) / 8;
    unsigned char codes[kGemmBlocks][kCodeBytes + kHighBytes];
    signed char inputs[kGemmTokens][kChunk];  // 16-byte pieces of token t exchanged by t % 8
    int2 side[kParts][kGemmTokens];
    unsigned short scales[kGemmBlocks][kParts][kBlockRows];
    unsigned char zeros[kGemmBlocks][kParts][kBlockRows];
};

// Four codes minus four zero-points, byte by byte without borrows: (code + 128 - zero) ^ 128.
__device__ __forceinline__ unsigned signed_codes(unsigned codes, unsigned zeros) {
    return ((codes | 0x80808080u) - zeros) ^ 0x80808080u;
}

template <int kBits, int kParts>
__device__ __forceinline__ void gemm(const Matrix& w, float* out, const Activations& x, int m,
                                     bool add) {
    AWQE_DYNAMIC_SHARED(unsigned char, shared_bytes);
    using Stage = GemmStage<kBits, kParts>;
    Stage* const stages = reinterpret_cast<Stage*>(shared_bytes);
    constexpr bool kWhole = kParts == 1;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int quarter = lane & 3;
    const int row = lane >> 2;
    const int r = row & 3;
    const int warp_row = warp >> 2;   // 32 outputs each
    const int warp_token = warp & 3;  // 32 tokens each
    const int first_output = blockIdx.x * kGemmOutputs;
    const int first_token = blockIdx.y * kGemmTokens;
    const int first_block = first_output / kBlockRows;
    const int last_block = (w.rows + kBlockRows - 1) / kBlockRows - 1;
    const int chunks = (w.groups + kParts - 1) / kParts;
    let_next_kernel_start();
    wait_for_kernel_before();

    // What this thread copies in every step: where from in step 0, and how far it is to the next.
    constexpr int kPieces = Stage::kCodeBytes / 16;
    constexpr int kAllPieces = kGemmBlocks * kPieces;
    constexpr int kCopies = (kAllPieces + kGemmThreads - 1) / kGemmThreads;
    static_assert(kAllPieces % kGemmThreads == 0 || kCopies == 1, "every thread copies as much");
    constexpr int kRunInputs = kLowBits<kBits> >= 4 ? 32 : 64;  // of 4 rows, side by side
    constexpr int kRunPieces = kBits == 8 ? 8 : 4;
    const unsigned char* from_codes[kCopies];
    int inputs_before[kCopies];  // of the piece in its chunk
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
        const int number = threadIdx.x + i * kGemmThreads;
        const int block = min(first_block + number % kAllPieces / kPieces, last_block);
        const int piece = number % kPieces;
        from_codes[i] = w.blocks + (long long)block * w.block_bytes + w.codes_offset + piece * 16;
        inputs_before[i] = piece / kRunPieces * kRunInputs;
    }
    constexpr int kInputCopies = kGemmTokens * (kChunk / 16) / kGemmThreads;
    const signed char* from_inputs[kInputCopies];
#pragma unroll
    for (int i = 0; i < kInputCopies; ++i) {
        const int t = (threadIdx.x + i * kGemmThreads) / (kChunk / 16);
        from_inputs[i] = x.codes + (long long)min(first_token + t, m - 1) * x.code_stride +
                         threadIdx.x % (kChunk / 16) * 16;
    }
    const int side_token = threadIdx.x % kGemmTokens;
    const int2* const from_side =
        x.side + (long long)min(first_token + side_token, m - 1) * x.group_stride;
    const int side_block = threadIdx.x % kGemmBlocks;
    const unsigned char* const from_block =
        w.blocks + (long long)min(first_block + side_block, last_block) * w.block_bytes;

    const auto issue = [&](int c) {
        if (c < chunks) {
            Stage& stage = stages[c % kGemmStages];
            const int limit = w.padded_columns - c * kChunk;  // inputs that the file holds
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                const int number = threadIdx.x + i * kGemmThreads;
                // What is not copied weighs nothing: the activations are zero there.
                if (inputs_before[i] < limit && number < kAllPieces)
                    copy_async16(stage.codes[number / kPieces] + number % kPieces * 16,
                                 from_codes[i]);
                from_codes[i] += Stage::kCodeBytes;
            }
            if constexpr (Stage::kHighBytes > 0) {
                constexpr int kHighPieces = Stage::kHighBytes / 16;  // of two runs of 64 inputs
                const int piece = threadIdx.x / kGemmBlocks;
                if (piece < kHighPieces && piece / (kHighPieces / 2) * 64 < limit)
                    copy_async16(
                        stage.codes[side_block] + Stage::kCodeBytes + piece * 16,
                        from_block + w.high_plane_offset + c * Stage::kHighBytes + piece * 16);
            }
#pragma unroll
            for (int i = 0; i < kInputCopies; ++i) {
                const int number = threadIdx.x + i * kGemmThreads;
                const int t = number / (kChunk / 16);
                const int piece = number % (kChunk / 16);
                copy_async16(stage.inputs[t] + ((piece ^ (t & 7)) * 16), from_inputs[i]);
                from_inputs[i] += kChunk;
            }
#pragma unroll
            for (int p = threadIdx.x / kGemmTokens; p < kParts; p += kGemmThreads / kGemmTokens)
                copy_async8(&stage.side[p][side_token], from_side + c * kParts + p);
            const int p = threadIdx.x / kGemmBlocks;
            if (p < kParts) {
                const int group = min(c * kParts + p, w.groups - 1);
                copy_async8(stage.scales[side_block][p], from_block + group * 8);
                copy_async4(stage.zeros[side_block][p],
                            from_block + w.zero_points_offset + group * 4);
            }
        }
        commit_copies();
    };

    float y[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int k = 0; k < 4; ++k) y[i][j][k] = 0.0f;

    for (int c = 0; c < kGemmStages - 1; ++c) issue(c);
    for (int c = 0; c < chunks; ++c) {
        wait_for_copies<kGemmStages - 2>();
        __syncthreads();
        issue(c + kGemmStages - 1);
        const Stage& stage = stages[c % kGemmStages];
        const int limit = w.padded_columns - c * kChunk;
        unsigned a[2][4][4];  // [tile][step][operand]
        float scale[kParts][2][2];
        int zero[kParts][2][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int block = warp_row * 8 + i * 4 + (row >> 2);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int b = block + half * 2;
                RawRow<kBits> raw;
                load_raw<kBits, kWhole, false>(
                    raw, stage.codes[b], stage.codes[b] + Stage::kCodeBytes, r, quarter, limit);
#pragma unroll
                for (int p = 0; p < kParts; ++p) {
                    scale[p][i][half] = half_to_float(stage.scales[b][p][r]);
                    zero[p][i][half] = int(stage.zeros[b][p][r]);
                }
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    unsigned first, second;
                    step_words<kBits, kWhole>(raw, quarter, s, first, second);
                    if constexpr (kBits != 8) {
                        const unsigned z = zero[s * kParts / 4][i][half] * 0x01010101u;
                        first = signed_codes(first, z);
                        second = signed_codes(second, z);
                    }
                    a[i][s][half] = first;
                    a[i][s][half + 2] = second;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int t = warp_token * 32 + j * 8 + row;
            int b[8];
            const signed char* const inputs = stage.inputs[t];
            if constexpr (kWhole) {
                const int4 low =
                    *reinterpret_cast<const int4*>(inputs + (((2 * quarter) ^ (t & 7)) * 16));
                const int4 high =
                    *reinterpret_cast<const int4*>(inputs + (((2 * quarter + 1) ^ (t & 7)) * 16));
                b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
                b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
            } else {
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    b[2 * s] = *reinterpret_cast<const int*>(inputs + (((2 * s) ^ (t & 7)) * 16) +
                                                             quarter * 4);
                    b[2 * s + 1] = *reinterpret_cast<const int*>(
                        inputs + (((2 * s + 1) ^ (t & 7)) * 16) + quarter * 4);
                }
            }
            const int pair = warp_token * 32 + j * 8 + quarter * 2;
#pragma unroll
            for (int p = 0; p < kParts; ++p) {
                if (kParts > 1 && c * kParts + p >= w.groups) break;
                const int2 side0 = stage.side[p][pair];
                const int2 side1 = stage.side[p][pair + 1];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int start[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
                    int d[4];
                    constexpr int kSteps = 4 / kParts;
                    if constexpr (kBits == 8)
                        multiply_unsigned(d, a[i][p * kSteps], b[2 * p * kSteps],
                                          b[2 * p * kSteps + 1], start);
                    else
                        multiply_signed(d, a[i][p * kSteps], b[2 * p * kSteps],
                                        b[2 * p * kSteps + 1], start);
#pragma unroll
                    for (int s = p * kSteps + 1; s < (p + 1) * kSteps; ++s) {
                        if constexpr (kBits == 8)
                            multiply_unsigned(d, a[i][s], b[2 * s], b[2 * s + 1], d);
                        else
                            multiply_signed(d, a[i][s], b[2 * s], b[2 * s + 1], d);
                    }
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const int2 side = k & 1 ? side1 : side0;
                        int dot = d[k];
                        if constexpr (kBits == 8) dot -= zero[p][i][k >> 1] * side.y;
                        const float exact = __int_as_float(dot) - 0x1.8p+23f;
                        y[i][j][k] =
                            fma(exact, scale[p][i][k >> 1] * __int_as_float(side.x), y[i][j][k]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int n = first_output + warp_row * 32 + i * 16 + half * 8 + row;
            if (n >= w.rows) continue;
            const float bias = w.bias == nullptr ? 0.0f : w.bias[n];
            const int first = first_token + warp_token * 32 + quarter * 2;
            float* const to = out + (long long)first * w.rows + n;
            // What is added to is read before anything is written: the compiler may not move a load
            // over a store, and would wait for each of them.
            float before[8];
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const int t = e / 2 * 8 + e % 2;
                before[e] = add && first + t < m ? __ldcg(to + (long long)t * w.rows) : 0.0f;
            }
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const int t = e / 2 * 8 + e % 2;
                if (first + t >= m) continue;
                float value = y[i][e / 2][half * 2 + e % 2];
                if (w.bias != nullptr) value = value + bias;
                to[(long long)t * w.rows] = add ? before[e] + value : value;
            }
        }
}

}  // namespace awqe_cuda
