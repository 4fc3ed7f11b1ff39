// What mixtures of experts need beside products: native/ARITHMETIC.md, section 10.
#pragma once

#include "device.h"

namespace awqe_cuda {

constexpr int kRouterWarps = 8;

// Logits of a row's router, and behind them that of the shared expert's, if it has one. x: float
// [m, k], logits: float [m, experts + 1]. Half a warp per expert; grid (experts + 1 / 16, m).
__device__ __forceinline__ void route_row(const float* x, const float* router,
                                          const float* shared_router, int k, int experts,
                                          float* logits) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int lane = threadIdx.x % kLanes;
    const int expert = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes;
    const float* const weight = expert < experts    ? router + (long long)expert * k
                                : expert == experts ? shared_router
                                                    : nullptr;
    const float* const row = x + (long long)blockIdx.y * k;
    float sum = 0.0f;
    if (weight != nullptr) {
        for (int i = lane; i < k; i += kLanes) sum = fma(row[i], weight[i], sum);
    }
    const float logit = tree_of_lanes(sum);  // of all lanes of the warp
    if (weight != nullptr && lane == 0) {
        logits[(long long)blockIdx.y * (experts + 1) + expert] = logit;
    }
}

// mixed[rows[i]] += weights[i] * part[i], two roundings; without `rows` those of the block. part:
// float [count, k]. Grid (k / threads, count).
__device__ __forceinline__ void add_weighted_row(const float* part, const unsigned* rows,
                                                 const float* weights, int k, float* mixed) {
    let_next_kernel_start();
    wait_for_kernel_before();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= k) return;
    const int row = rows == nullptr ? blockIdx.y : rows[blockIdx.y];
    float* const sum = mixed + (long long)row * k + i;
    *sum = *sum + weights[blockIdx.y] * part[(long long)blockIdx.y * k + i];
}

}  // namespace awqe_cuda
