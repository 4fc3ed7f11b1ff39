// gemv_ug.h for 4 bits with AVX2. The algorithm stands in gemv_avx2.h.
#include "native/kernels/codes/sums_avx2.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {

void gemv_s8d_u4g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<4, SumFor<4>::Type>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
