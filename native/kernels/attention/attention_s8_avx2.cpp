// Attention over the int8 cache with AVX2. Contract: attention_s8.h.
// clang-format off: the algorithm is written over the lanes included before it.
#include "native/kernels/lanes/lanes_avx2.h"
#include "native/kernels/attention/attention_s8.h"
#include "native/kernels/attention/attention_lanes.h"
// clang-format on

namespace awqe {

void attention_s8_avx2(const float* queries, size_t count, const CacheS8* cache, size_t head_size,
                       size_t begin, size_t end, const ScoreChange* change, float* out) {
    attention_lanes(queries, count, *cache, head_size, begin, end, change, out);
}

}  // namespace awqe
