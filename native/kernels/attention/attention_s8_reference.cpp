// Attention over the int8 cache in plain loops. Contract: attention_s8.h; arithmetic:
// native/ARITHMETIC.md, section 8.
#include "native/kernels/attention/attention_reference.h"

namespace awqe {

void attention_s8_reference(const float* queries, size_t count, const CacheS8* cache,
                            size_t head_size, size_t begin, size_t end, const ScoreChange* change,
                            float* out) {
    attend(queries, count, *cache, head_size, begin, end, change, out);
}

}  // namespace awqe
