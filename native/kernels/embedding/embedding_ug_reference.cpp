// One row of a packed matrix of any bit width as floats. Contract: embedding_ug.h. Every table uses
// it: a token looks up one row, a ten-thousandth of what it reads.
#include "native/kernels/embedding/embedding_ug.h"
#include "native/kernels/scalar/codes.h"

namespace awqe {
namespace {

int32_t code_at(const PackedMatrix& w, uint64_t row, uint64_t k) {
    switch (w.bits) {
        case 2:
            return code_u2(w, row, k);
        case 3:
            return code_u3(w, row, k);
        case 4:
            return code_u4(w, row, k);
        case 5:
            return code_u5(w, row, k);
        case 6:
            return code_u6(w, row, k);
        default:
            return code_u8(w, row, k);
    }
}

}  // namespace

void embedding_ug_reference(const PackedMatrix* w, size_t row, float* out) {
    for (size_t k = 0; k < w->columns; ++k) {
        const size_t group = k / w->group_size;
        const int32_t code = code_at(*w, row, k) - zero_point_at(*w, row, group);
        out[k] = (float)code * scale_at(*w, row, group);
    }
}

}  // namespace awqe
