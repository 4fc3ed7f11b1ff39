// gemv_ug.h for 3 bits on armv8.0: SMLAL. The algorithm stands in gemv_neon.h.
#include "native/kernels/gemv/gemv_neon.h"

namespace awqe {

void gemv_s8d_u3g_neon(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<3, Int16Sum>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
