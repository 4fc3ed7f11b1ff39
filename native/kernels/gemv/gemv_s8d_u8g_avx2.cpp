// gemv_ug.h for 8 bits with AVX2. The algorithm stands in gemv_avx2.h.
#include "native/kernels/codes/sums_avx2.h"
#include "native/kernels/gemv/gemv_avx2.h"

namespace awqe {

void gemv_s8d_u8g_avx2(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t row_begin,
                       size_t row_end) {
    gemv<8, SumFor<8>::Type>(w, x, y, row_begin, row_end);
}

}  // namespace awqe
