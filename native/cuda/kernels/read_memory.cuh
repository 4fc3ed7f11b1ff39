// Reading and nothing else: how fast memory gives its bytes.
#pragma once

#include "device.h"

namespace awqe_cuda {

constexpr int kReadsAhead = 8;  // of a thread: 32 KB of a CTA are on their way

// `count` pieces of 16 bytes, by CTAs that take neighbouring ones in turn. `sum` is written to in
// one case of four billion, so that no compiler leaves the reads out.
__device__ __forceinline__ void read_pieces(const unsigned char* pieces, long long count,
                                            unsigned* sum) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    unsigned total = 0;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += kReadsAhead * stride) {
        uint4 read[kReadsAhead];
#pragma unroll
        for (int ahead = 0; ahead < kReadsAhead; ++ahead) {
            const long long at = i + ahead * stride;
            read[ahead] = load_codes(pieces + (at < count ? at : i) * 16);
        }
#pragma unroll
        for (int ahead = 0; ahead < kReadsAhead; ++ahead) {
            total ^= read[ahead].x + read[ahead].y + read[ahead].z + read[ahead].w;
        }
    }
    if (total == 0x9e3779b9u) *sum = total;
}

}  // namespace awqe_cuda
