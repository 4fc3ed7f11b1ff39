// Attention over the fp16 cache in plain loops. Contract: attention_f16.h; arithmetic:
// native/ARITHMETIC.md, section 7.
#include "native/kernels/attention/attention_reference.h"

namespace awqe {

void attention_f16_reference(const float* queries, size_t count, const CacheF16* cache,
                             size_t head_size, size_t begin, size_t end, const ScoreChange* change,
                             float* out) {
    attend(queries, count, *cache, head_size, begin, end, change, out);
}

}  // namespace awqe
