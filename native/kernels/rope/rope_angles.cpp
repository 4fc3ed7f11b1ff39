// Sine and cosine of a position's angles, the one implementation for every CPU. Contract:
// rope_f32.h; arithmetic: native/ARITHMETIC.md, section 5.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native/kernels/rope/rope_f32.h"

namespace awqe {

void rope_angles(size_t position, const float* inverse_frequencies, size_t half, float* cosines,
                 float* sines) {
    for (size_t i = 0; i < half; ++i) {
        const float angle = (float)position * inverse_frequencies[i];
        // Quarter turns, to the nearest even integer: 1.5 * 2^23 leaves no bit for a fraction.
        const float shifted = angle * 0x1.45f306p-1f + 0x1.8p+23f;
        const float turns = shifted - 0x1.8p+23f;
        float r = fmaf(-turns, 0x1.921fb6p+0f, angle);
        r = fmaf(-turns, -0x1.777a5cp-25f, r);
        r = fmaf(-turns, -0x1.ee59dap-50f, r);
        const float r2 = r * r;
        float s = fmaf(-0x1.98da08p-13f, r2, 0x1.1105b2p-7f);
        s = fmaf(s, r2, -0x1.555554p-3f);
        s = fmaf(s * r2, r, r);
        float c = fmaf(0x1.9a020ap-16f, r2, -0x1.6c0c8ap-10f);
        c = fmaf(c, r2, 0x1.55554ap-5f);
        c = fmaf(c, r2, -0.5f);
        c = fmaf(c, r2, 1.0f);
        uint32_t quadrant;
        memcpy(&quadrant, &shifted, sizeof(quadrant));
        const bool swapped = (quadrant & 1) != 0;
        const float sine = swapped ? c : s;
        const float cosine = swapped ? s : c;
        sines[i] = (quadrant & 2) != 0 ? -sine : sine;
        cosines[i] = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
    }
}

}  // namespace awqe
