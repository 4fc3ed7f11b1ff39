// The contract of attention over an int8 cache: that of attention_f16.h, with a scale for every
// position's key and value. quantize_act_s8d.h fills the cache, a head being one group.
#pragma once

#include "native/kernels/attention/attention_f16.h"

namespace awqe {

// Keys and values of one head: number = scale of its row * code. Rows as in CacheF16.
struct CacheS8 {
    const int8_t* keys;         // [row, stride]; the first head_size of each row are this head's
    const int8_t* values;       // [row, stride]
    const float* key_scales;    // [row]
    const float* value_scales;  // [row]
    size_t stride;
    size_t ring;
};

// As AttentionF16Function.
using AttentionS8Function = void (*)(const float* queries, size_t count, const CacheS8* cache,
                                     size_t head_size, size_t begin, size_t end,
                                     const ScoreChange* change, float* out);

}  // namespace awqe
