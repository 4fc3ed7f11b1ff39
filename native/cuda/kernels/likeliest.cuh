// The likeliest token of a row's logits, as runtime/sampler.h's greedy draw has it: the lowest one
// of equal logits, and whether any is not finite. So a step that decodes hands out a token in the
// place of a vocabulary.
#pragma once

#include "device.h"

namespace awqe_cuda {

constexpr int kLikeliestThreads = 256;
constexpr int kLikeliestEach = kLikeliestNumbers / kLikeliestThreads;  // logits of a thread

// What one of two parts and the other are together.
__device__ __forceinline__ LogitPart likelier(const LogitPart& a, const LogitPart& b) {
    LogitPart both = a;
    if (b.logit > a.logit || (b.logit == a.logit && b.token < a.token))
        both.logit = b.logit, both.token = b.token;
    if (b.not_finite < a.not_finite) both.not_finite = b.not_finite;
    return both;
}

// That of all threads of a CTA, for its first one.
__device__ __forceinline__ LogitPart likeliest_of_all(LogitPart part, LogitPart* shared_parts) {
    const auto of_warp = [&] {
        for (int width = 16; width > 0; width /= 2) {
            LogitPart other;
            other.logit = __shfl_xor_sync(~0u, part.logit, width);
            other.token = __shfl_xor_sync(~0u, part.token, width);
            other.not_finite = __shfl_xor_sync(~0u, part.not_finite, width);
            part = likelier(part, other);
        }
    };
    of_warp();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) shared_parts[warp] = part;
    __syncthreads();
    if (warp == 0) {
        part = shared_parts[min(int(threadIdx.x), kLikeliestThreads / 32 - 1)];
        of_warp();
    }
    return part;
}

// logits: float [m, vocabulary], row i of them that of rows[wanted[i]], or without `wanted` that of
// rows[i]; copied to where the row keeps them. Rows that keep none are left out. A CTA has
// kLikeliestNumbers of a row, and the last one to arrive all of it: grid (vocabulary /
// kLikeliestNumbers, m).
//
// parts: [m, grid.x]. arrivals: [m], zero. out: [2, out_stride], a row's by whether its position is
// odd: what the step before has left stays. `next`: [m], or NULL: the rows with the likeliest token
// at the next position. `out` and `next` may lie in memory of the host.
__device__ __forceinline__ void find_likeliest(const float* logits, int vocabulary,
                                               const Row* rows, const unsigned* wanted,
                                               LogitPart* parts, unsigned* arrivals,
                                               Likeliest* out, int out_stride, Row* next) {
    __shared__ LogitPart shared_parts[kLikeliestThreads / 32];
    __shared__ bool shared_last;
    let_next_kernel_start();
    wait_for_kernel_before();
    const int i = blockIdx.y;
    const Row row = rows[wanted == nullptr ? i : int(wanted[i])];
    if (row.kept == nullptr) return;
    const float* const own = logits + (long long)i * vocabulary;
    float* const kept = row.kept + (long long)(row.position & 1) * vocabulary;
    const LogitPart none = {__int_as_float(int(0xff800000)), kNoToken, kNoToken};
    LogitPart part = none;
#pragma unroll
    for (int j = 0; j < kLikeliestEach; ++j) {
        const int k = blockIdx.x * kLikeliestNumbers + j * kLikeliestThreads + threadIdx.x;
        if (k >= vocabulary) continue;
        const float logit = own[k];
        kept[k] = logit;
        const bool finite = magnitude_bits(logit) < kInfinityBits;
        part = likelier(part, {finite ? logit : none.logit, finite ? unsigned(k) : kNoToken,
                               finite ? kNoToken : unsigned(k)});
    }
    part = likeliest_of_all(part, shared_parts);
    LogitPart* const own_parts = parts + i * gridDim.x;
    if (threadIdx.x == 0) {
        own_parts[blockIdx.x] = part;
        shared_last = count_arrival(arrivals + i) + 1 == gridDim.x;
        if (shared_last) arrivals[i] = 0;
    }
    __syncthreads();
    if (!shared_last) return;
    part = none;
    for (unsigned p = threadIdx.x; p < gridDim.x; p += kLikeliestThreads) {
        const LogitPart* const from = own_parts + p;
        part = likelier(
            part, {__ldcg(&from->logit), __ldcg(&from->token), __ldcg(&from->not_finite)});
    }
    part = likeliest_of_all(part, shared_parts);
    if (threadIdx.x != 0) return;
    // A step may go on with it before the host has seen that it is none.
    const unsigned token = part.not_finite == kNoToken ? part.token : 0;
    out[(row.position & 1) * out_stride + i] = {token, part.not_finite};
    if (next == nullptr) return;
    Row following = row;
    following.token = token;
    following.position += 1;
    for (int axis = 0; axis < 3; ++axis) following.turns[axis] += 1;
    next[i] = following;
}

}  // namespace awqe_cuda
