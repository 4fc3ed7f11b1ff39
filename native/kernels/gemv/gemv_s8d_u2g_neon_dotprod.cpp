// gemv_ug.h for 2 bits on cores with SDOT. The algorithm stands in gemv_neon.h.
#include "native/kernels/codes/sums_neon_dotprod.h"
#include "native/kernels/gemv/gemv_neon.h"

namespace awqe {

void gemv_s8d_u2g_neon_dotprod(const PackedMatrix* w, const QuantizedRows* x, float* y,
                               size_t row_begin, size_t row_end) {
    gemv<2, SdotSum>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
