// The embedding: every table against the definition, which float computes exactly up to one
// rounding.
#include "tests/native/support/check.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/test_matrix.h"

namespace awqe::test {
namespace {

TEST(a_row_is_scale_times_code_minus_zero_point) {
    uint64_t seed = 1;
    for (const KernelTable* table : runnable_tables()) {
        for (const int bits : bit_widths()) {
            for (const size_t group_size : group_sizes()) {
                for (const MatrixShape shape : matrix_shapes()) {
                    const TestMatrix w(shape.rows, shape.columns, bits, group_size, Fill::kRandom,
                                       ++seed);
                    const size_t row = shape.rows - 1;
                    GuardedBuffer<float> out(shape.columns);
                    table->embedding(&w.packed, row, out.data());
                    for (size_t k = 0; k < shape.columns; ++k) {
                        const size_t g = row * w.groups + k / group_size;
                        const int code = w.codes[row * shape.columns + k] - w.zero_points[g];
                        CHECK_EQUAL(out[k], static_cast<float>(code * half_value(w.scales[g])));
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
