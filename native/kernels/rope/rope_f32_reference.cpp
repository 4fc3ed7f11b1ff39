// The rotary position embedding in plain loops. Contract: rope_f32.h; arithmetic:
// native/ARITHMETIC.md, section 5.
#include <math.h>

#include "native/kernels/rope/rope_f32.h"

namespace awqe {

void rope_f32_reference(float* x, size_t heads, size_t head_size, const float* cosines,
                        const float* sines) {
    const size_t half = head_size / 2;
    for (size_t head = 0; head < heads; ++head) {
        float* low = x + head * head_size;
        float* high = low + half;
        for (size_t i = 0; i < half; ++i) {
            const float x0 = low[i];
            const float x1 = high[i];
            low[i] = fmaf(-x1, sines[i], x0 * cosines[i]);
            high[i] = fmaf(x0, sines[i], x1 * cosines[i]);
        }
    }
}

}  // namespace awqe
