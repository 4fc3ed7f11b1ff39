// gemm.cuh's products on warpgroups (sm_90a): four warps multiply 64 outputs x 64 tokens in one
// instruction that takes its weights from registers and its activations from shared memory, so that
// nothing but unpacking is left to do per weight. Tiles, order and bits are gemm.cuh's.
//
// A warpgroup's 128 tokens are two halves. While the tensor cores are at both, the next chunk's
// weights are unpacked; while they are at the second, the first one's exact sums go to the float
// accumulators.
#pragma once

#include "gemm.cuh"

#if defined(AWQE_HAS_WARPGROUPS)

namespace awqe_cuda {

constexpr int kGroupThreads = 256;  // two warpgroups, 64 outputs each
constexpr int kChunksAhead = 4;  // chunks on their way; the warpgroups are at two others
constexpr int kHalfTokens = 64;

// One step's share of shared memory.
template <int kBits, int kParts>
struct GroupStage {
    static constexpr int kCodeBytes = kChunk * kBlockRows * kLowBits<kBits> / 8;
    static constexpr int kHighBytes = kChunk * kBlockRows * (kBits - kLowBits<kBits>) / 8;
    // Against bank conflicts between the two blocks that a warp reads at once.
    static constexpr int kPad = kBits == 8 ? 16 : kHighBytes % 128 == 64 ? 0 : 64;
    signed char inputs[kGemmTokens][kChunk];  // 16-byte pieces of token t exchanged by t % 8
    unsigned char codes[kGemmBlocks][kCodeBytes + kHighBytes + kPad];
    float input_scales[kParts][kGemmTokens];
    int input_sums[kParts][kGemmTokens];  // at 8 bits
    unsigned short scales[kGemmBlocks][kParts][kBlockRows];
    unsigned char zeros[kGemmBlocks][kParts][kBlockRows];
};
// Stages begin at multiples of 1024 bytes, of which the exchange of pieces depends.
template <int kBits, int kParts>
constexpr int kGroupStageBytes = (int(sizeof(GroupStage<kBits, kParts>)) + 1023) / 1024 * 1024;

// What a lane multiplies in a step: weights of two rows, and what belongs to their groups.
template <int kParts>
struct GroupWeights {
    unsigned words[4][4];  // [step][operand]
    float scale[kParts][2];
    int zero[kParts][2];
};

// Of 16 rows, a warp's. What the file does not hold of a last chunk is anything here, and meets
// activations of zero.
template <int kBits, int kParts>
__device__ __forceinline__ void unpack_weights(GroupWeights<kParts>& w,
                                               const GroupStage<kBits, kParts>& stage, int warp) {
    const int lane = threadIdx.x & 31;
    const int quarter = lane & 3;
    const int row = lane >> 2;
    const int r = row & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int b = warp * 4 + (row >> 2) + half * 2;
        RawRow<kBits> raw;
        load_raw<kBits, false, false>(raw, stage.codes[b],
                                      stage.codes[b] + GroupStage<kBits, kParts>::kCodeBytes, r,
                                      quarter, kChunk);
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            w.scale[p][half] = half_to_float(stage.scales[b][p][r]);
            w.zero[p][half] = int(stage.zeros[b][p][r]);
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            unsigned first, second;
            step_words<kBits, false>(raw, quarter, s, first, second);
            if constexpr (kBits != 8) {
                const unsigned z = w.zero[s * kParts / 4][half] * 0x01010101u;
                first = signed_codes(first, z);
                second = signed_codes(second, z);
            }
            w.words[s][half] = first;
            w.words[s][half + 2] = second;
        }
    }
}

// Grid (tiles of all matrices, tiles of tokens).
template <int kBits, int kParts>
__device__ __forceinline__ void gemm_warpgroup(const Products& products, const Activations& x,
                                               int m, bool add) {
    AWQE_DYNAMIC_SHARED(unsigned char, shared_bytes);
    using Stage = GroupStage<kBits, kParts>;
    unsigned char* const stages = aligned_shared(shared_bytes, 1024);
    const auto stage_at = [&](int c) -> Stage& {
        return *reinterpret_cast<Stage*>(stages +
                                         c % kGroupStages * kGroupStageBytes<kBits, kParts>);
    };
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int quarter = lane & 3;
    const int row = lane >> 2;

    int number = 0;
    int tile = blockIdx.x;
    while (number + 1 < products.count) {
        const int tiles = (products.matrix[number].rows + kGemmOutputs - 1) / kGemmOutputs;
        if (tile < tiles) break;
        tile -= tiles;
        ++number;
    }
    const Matrix& w = products.matrix[number];
    float* const out = products.out[number];
    const int first_output = tile * kGemmOutputs;
    const int first_token = blockIdx.y * kGemmTokens;
    const int first_block = first_output / kBlockRows;
    const int last_block = (w.rows + kBlockRows - 1) / kBlockRows - 1;
    const int chunks = (w.groups + kParts - 1) / kParts;
    let_next_kernel_start();
    wait_for_kernel_before();

    // What this thread copies in every step: where from in step 0, and how far it is to the next.
    constexpr int kPieces = Stage::kCodeBytes / 16;
    constexpr int kCopies = kGemmBlocks * kPieces / kGroupThreads;
    static_assert(kGemmBlocks * kPieces % kGroupThreads == 0, "every thread copies as much");
    constexpr int kRunInputs = kLowBits<kBits> >= 4 ? 32 : 64;  // of 4 rows, side by side
    constexpr int kRunPieces = kBits == 8 ? 8 : 4;
    const int piece = threadIdx.x % kPieces;
    const int inputs_before = piece / kRunPieces * kRunInputs;  // of the piece in its chunk
    const unsigned char* from_codes = w.blocks + (long long)first_block * w.block_bytes +
                                      w.codes_offset + piece * 16;
    int codes_at[kCopies];  // from there
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
        const int b = threadIdx.x / kPieces + i * (kGroupThreads / kPieces);
        codes_at[i] = min(b, last_block - first_block) * w.block_bytes;
    }
    constexpr int kRowPieces = kChunk / 16;
    constexpr int kInputCopies = kGemmTokens * kRowPieces / kGroupThreads;
    const signed char* from_inputs =
        x.codes + (long long)first_token * x.code_stride + threadIdx.x % kRowPieces * 16;
    int inputs_at[kInputCopies];
#pragma unroll
    for (int i = 0; i < kInputCopies; ++i) {
        const int t = threadIdx.x / kRowPieces + i * (kGroupThreads / kRowPieces);
        inputs_at[i] = min(t, m - 1 - first_token) * x.code_stride;
    }
    const int side_token = threadIdx.x % kGemmTokens;
    const int2* const from_side =
        x.side + (long long)min(first_token + side_token, m - 1) * x.group_stride;
    const int side_block = threadIdx.x % kGemmBlocks;
    const unsigned char* const from_block =
        w.blocks + (long long)min(first_block + side_block, last_block) * w.block_bytes;

    const auto issue = [&](int c) {
        if (c < chunks) {
            Stage& stage = stage_at(c);
            const int limit = w.padded_columns - c * kChunk;  // inputs that the file holds
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                // What is not copied weighs nothing: the activations are zero there.
                if (inputs_before < limit)
                    copy_async16(
                        stage.codes[threadIdx.x / kPieces + i * (kGroupThreads / kPieces)] +
                            piece * 16,
                        from_codes + codes_at[i]);
            }
            from_codes += Stage::kCodeBytes;
            if constexpr (Stage::kHighBytes > 0) {
                constexpr int kHighPieces = Stage::kHighBytes / 16;  // of two runs of 64 inputs
                const int high = threadIdx.x / kGemmBlocks;
                if (high < kHighPieces && high / (kHighPieces / 2) * 64 < limit)
                    copy_async16(
                        stage.codes[side_block] + Stage::kCodeBytes + high * 16,
                        from_block + w.high_plane_offset + c * Stage::kHighBytes + high * 16);
            }
#pragma unroll
            for (int i = 0; i < kInputCopies; ++i) {
                const int t = threadIdx.x / kRowPieces + i * (kGroupThreads / kRowPieces);
                copy_async16(stage.inputs[t] + ((threadIdx.x % kRowPieces ^ (t & 7)) * 16),
                             from_inputs + inputs_at[i]);
            }
            from_inputs += kChunk;
            constexpr int kSides = kGroupThreads / kGemmTokens;
#pragma unroll
            for (int p = 0; p < kParts; p += kSides) {
                const int own = p + threadIdx.x / kGemmTokens;
                if (own >= kParts) continue;
                const int2* const side = from_side + c * kParts + own;
                copy_async4(&stage.input_scales[own][side_token], &side->x);
                if (kBits == 8) copy_async4(&stage.input_sums[own][side_token], &side->y);
            }
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

    float y[2][kHalfTokens / 2];  // [half][tokens of 8][row of two][token of two]
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (float& value : y[h]) value = 0.0f;
    int dots[2][kHalfTokens / 2] = {};

    // Half h of the tokens times the weights of part p: begins, and runs beside the warps.
    const auto begin_half = [&](int h, const GroupWeights<kParts>& weights, const Stage& stage,
                                int p) {
        constexpr int kSteps = 4 / kParts;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (s / kSteps != p) continue;
            const signed char* const inputs = stage.inputs[h * kHalfTokens];
            if (s % kSteps == 0)
                multiply_warpgroup<kBits == 8, true>(dots[h], weights.words[s], inputs, s);
            else
                multiply_warpgroup<kBits == 8, false>(dots[h], weights.words[s], inputs, s);
        }
        commit_warpgroup();
    };
    // Its exact sums go to the float accumulators.
    const auto take_half = [&](int h, const GroupWeights<kParts>& weights, const Stage& stage,
                               int p) {
#pragma unroll
        for (int j = 0; j < kHalfTokens / 8; ++j) {
            const int t = h * kHalfTokens + j * 8 + quarter * 2;
            const float2 by = *reinterpret_cast<const float2*>(&stage.input_scales[p][t]);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                int dot = dots[h][j * 4 + k];
                if constexpr (kBits == 8)
                    dot -= weights.zero[p][k >> 1] * stage.input_sums[p][t + (k & 1)];
                const float exact = __int_as_float(dot + 0x4b400000) - 0x1.8p+23f;
                float& sum = y[h][j * 4 + k];
                sum = fma(exact, weights.scale[p][k >> 1] * (k & 1 ? by.y : by.x), sum);
            }
        }
    };
    // The warpgroups take turns at the tensor cores, so that one adds while the other multiplies:
    // left to themselves both multiply and both add. A turn says as well that the other one has
    // shown its copies of this chunk and the next, and has done with the last but one.
    const int own_turn = 1 + warp / 4;
    const int other_turn = 2 - warp / 4;
    // A chunk whose weights are unpacked; unpacks the next one's.
    const auto step = [&](int c, GroupWeights<kParts>& now, GroupWeights<kParts>& next) {
        const Stage& stage = stage_at(c);
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
            if (kParts > 1 && c * kParts + p >= w.groups) break;
            if (p == 0) {
                wait_for_copies<1>();  // those of chunk c + 2 are there
                show_copies_to_tensor_cores();
                wait_at_barrier(own_turn, kGroupThreads);
            }
            before_warpgroup(dots[0], dots[1]);
            begin_half(0, now, stage, p);
            begin_half(1, now, stage, p);
            if (p == 0) {
                arrive_at_barrier(other_turn, kGroupThreads);
                issue(c + kChunksAhead);
                unpack_weights<kBits, kParts>(next, stage_at(c + 1), warp);
            }
            wait_for_warpgroup<1>(dots[0], now.words);
            take_half(0, now, stage, p);
            wait_for_warpgroup<0>(dots[1], now.words);
            take_half(1, now, stage, p);
        }
    };

    GroupWeights<kParts> even, odd;
    for (int c = 0; c < kChunksAhead; ++c) issue(c);
    wait_for_copies<kChunksAhead - 2>();
    show_copies_to_tensor_cores();
    __syncthreads();
    unpack_weights<kBits, kParts>(even, stage_at(0), warp);
    if (own_turn == 2) arrive_at_barrier(other_turn, kGroupThreads);
    for (int c = 0; c < chunks; c += 2) {
        step(c, even, odd);
        if (c + 1 < chunks) step(c + 1, odd, even);
    }
    if (own_turn == 1) wait_at_barrier(own_turn, kGroupThreads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int n = first_output + warp * 16 + half * 8 + row;
        if (n >= w.rows) continue;
        const float bias = w.bias == nullptr ? 0.0f : w.bias[n];
        float* const to = out + (long long)(first_token + quarter * 2) * w.rows + n;
        const int left = m - first_token - quarter * 2;  // tokens from the lane's first on
        // What is added to is read before anything is written: the compiler may not move a load
        // over a store, and would wait for each of them.
        float before[kGemmTokens / 4];
#pragma unroll
        for (int i = 0; i < kGemmTokens / 4; ++i) {
            const int t = i / 2 * 8 + i % 2;
            before[i] = add && t < left ? __ldcg(to + (long long)t * w.rows) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kGemmTokens / 4; ++i) {
            const int t = i / 2 * 8 + i % 2;
            if (t >= left) continue;
            float value = y[i / 16][i % 16 / 2 * 4 + half * 2 + i % 2];
            if (w.bias != nullptr) value = value + bias;
            to[(long long)t * w.rows] = add ? before[i] + value : value;
        }
    }
}

}  // namespace awqe_cuda

#endif
