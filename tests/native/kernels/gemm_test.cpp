// The matrix-matrix product: every table against the reference matrix-vector product by ==, for
// token counts around every tile, row ranges, and results wider than the matrix.
#include "tests/native/support/check.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/test_matrix.h"

namespace awqe::test {
namespace {

// The expected result comes from the matrix-vector product: the batch may change nothing.
GuardedBuffer<float> token_by_token(const TestMatrix& w, int bits, const TestActivations& x) {
    GuardedBuffer<float> y(x.m * w.rows);
    for (size_t token = 0; token < x.m; ++token) {
        QuantizedRows one = x.rows;
        one.codes += token * one.code_stride;
        one.scales += token * one.group_stride;
        one.sums += token * one.group_stride;
        reference_table().gemv[bits](&w.packed, &one, y.data() + token * w.rows, 0, w.rows);
    }
    return y;
}

void check_tables(const TestMatrix& w, int bits, const TestActivations& x) {
    const GuardedBuffer<float> expected = token_by_token(w, bits, x);
    for (const KernelTable* table : runnable_tables()) {
        std::ostringstream where;
        where << table->name << " u" << bits << " [" << w.rows << ", " << w.columns
              << "] groups of " << w.group_size << ", " << x.m << " tokens";
        GuardedBuffer<float> y(x.m * w.rows);
        table->gemm[bits](&w.packed, &x.rows, x.m, y.data(), w.rows, 0, w.rows);
        check_same_bits(y.data(), expected.data(), y.size(), where.str());
    }
}

TEST(every_table_gives_the_bits_of_the_matrix_vector_product) {
    uint64_t seed = 1;
    for (const int bits : bit_widths()) {
        for (const size_t group_size : group_sizes()) {
            for (const size_t m : token_counts()) {
                for (const MatrixShape shape : {MatrixShape{5, 33}, {13, 129}, {36, 200}}) {
                    const TestMatrix w(shape.rows, shape.columns, bits, group_size, Fill::kRandom,
                                       ++seed);
                    check_tables(w, bits,
                                 TestActivations(m, shape.columns, group_size, false, ++seed));
                }
            }
            for (const MatrixShape shape : matrix_shapes()) {
                const TestMatrix w(shape.rows, shape.columns, bits, group_size, Fill::kRandom,
                                   ++seed);
                check_tables(w, bits, TestActivations(5, shape.columns, group_size, false, ++seed));
            }
        }
    }
}

TEST(pieces_of_a_long_row_and_of_a_long_prompt_fit_together) {
    uint64_t seed = 1;
    for (const int bits : bit_widths()) {
        for (const size_t group_size : group_sizes()) {
            for (const size_t columns : {480, 511, 512, 513, 640, 1023, 1025, 1100}) {
                const TestMatrix w(17, columns, bits, group_size, Fill::kRandom, ++seed);
                check_tables(w, bits, TestActivations(13, columns, group_size, false, ++seed));
            }
        }
        for (const size_t m : {191, 192, 193, 195, 196, 389}) {
            const TestMatrix w(5, 40, bits, 32, Fill::kRandom, ++seed);
            check_tables(w, bits, TestActivations(m, 40, 32, false, ++seed));
        }
    }
}

TEST(the_largest_and_the_smallest_sums_are_exact) {
    uint64_t seed = 1;
    for (const int bits : bit_widths()) {
        for (const size_t group_size : group_sizes()) {
            for (const Fill fill : {Fill::kLargest, Fill::kZero, Fill::kRandom}) {
                const TestMatrix w(12, 300, bits, group_size, fill, ++seed);
                check_tables(w, bits, TestActivations(9, 300, group_size, true, ++seed));
            }
        }
    }
}

TEST(a_range_of_rows_is_written_alone) {
    for (const int bits : bit_widths()) {
        const TestMatrix w(38, 192, bits, 64, Fill::kRandom, 7);
        const TestActivations x(5, 192, 64, false, 8);
        const GuardedBuffer<float> expected = token_by_token(w, bits, x);
        const size_t stride = w.rows + 3;
        const size_t ranges[][2] = {{0, 4}, {4, 8}, {4, 24}, {8, 38}, {36, 38}, {12, 12}};
        for (const KernelTable* table : runnable_tables()) {
            for (const auto& range : ranges) {
                GuardedBuffer<float> y((x.m - 1) * stride + w.rows);
                table->gemm[bits](&w.packed, &x.rows, x.m, y.data(), stride, range[0], range[1]);
                for (size_t i = 0; i < y.size(); ++i) {
                    const size_t row = i % stride;
                    const bool inside = row >= range[0] && row < range[1];
                    CHECK(y.untouched(i) == !inside);
                    if (inside) {
                        check_same_bits(&y[i], &expected[i / stride * w.rows + row], 1,
                                        table->name);
                    }
                }
            }
        }
    }
}

TEST(a_token_without_a_scale_has_no_results_and_its_neighbours_have_theirs) {
    for (const int bits : bit_widths()) {
        for (const size_t m : token_counts()) {
            const TestMatrix w(21, 200, bits, 64, Fill::kRandom, m);
            TestActivations x(m, 200, 64, false, m + 1);
            const size_t token = m / 2;
            std::memset(x.codes.data() + token * x.rows.code_stride + 64, 0, 64);
            x.sums[token * x.groups + 1] = 0;
            x.scales[token * x.groups + 1] = NAN;
            const GuardedBuffer<float> expected = token_by_token(w, bits, x);
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> y(m * w.rows);
                table->gemm[bits](&w.packed, &x.rows, m, y.data(), w.rows, 0, w.rows);
                check_same_values(y.data(), expected.data(), y.size(), table->name);
                for (size_t i = 0; i < y.size(); ++i) {
                    CHECK_EQUAL(std::isnan(y[i]), i / w.rows == token);
                }
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
