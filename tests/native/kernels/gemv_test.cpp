// The matrix-vector product: the reference against float64, every table against the reference by
// ==, row ranges.
#include "tests/native/oracle/oracle.h"
#include "tests/native/support/check.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/test_matrix.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

std::string describe(const TestMatrix& w, int bits) {
    std::ostringstream text;
    text << "u" << bits << " [" << w.rows << ", " << w.columns << "] groups of " << w.group_size;
    return text.str();
}

void check_against_oracle(const TestMatrix& w, int bits, const TestActivations& x) {
    GuardedBuffer<float> y(w.rows);
    reference_table().gemv[bits](&w.packed, &x.rows, y.data(), 0, w.rows);
    for (size_t row = 0; row < w.rows; ++row) {
        std::vector<double> scales(w.groups);
        for (size_t g = 0; g < w.groups; ++g) scales[g] = half_value(w.scales[row * w.groups + g]);
        const oracle::Value expected =
            oracle::product(&w.codes[row * w.columns], scales, &w.zero_points[row * w.groups],
                            x.codes.data(), x.scales.data(), w.columns, w.group_size);
        // Each group's term is rounded when the scales are multiplied and at every later addition.
        // Products of scales below 2^-126 lose bits of their own: at most half of 2^-149, times a
        // dot below 2^22.
        const double groups = static_cast<double>(w.groups);
        const double tolerance = sum_tolerance(expected.magnitude, groups + 1) + groups * 0x1p-127;
        if (!(std::fabs(static_cast<double>(y[row]) - expected.value) <= tolerance)) {
            std::ostringstream text;
            text << describe(w, bits) << ": row " << row << " is " << y[row] << ", the oracle says "
                 << expected.value << " +- " << tolerance;
            fail(__FILE__, __LINE__, text.str());
        }
    }
}

void check_tables(const TestMatrix& w, int bits, const TestActivations& x) {
    GuardedBuffer<float> expected(w.rows);
    reference_table().gemv[bits](&w.packed, &x.rows, expected.data(), 0, w.rows);
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> y(w.rows);
        table->gemv[bits](&w.packed, &x.rows, y.data(), 0, w.rows);
        check_same_bits(y.data(), expected.data(), w.rows,
                        std::string(table->name) + " " + describe(w, bits));
    }
}

template <typename Check>
void for_every_case(Check check) {
    uint64_t seed = 1;
    for (const int bits : bit_widths()) {
        for (const size_t group_size : group_sizes()) {
            for (const MatrixShape shape : matrix_shapes()) {
                const TestMatrix w(shape.rows, shape.columns, bits, group_size, Fill::kRandom,
                                   ++seed);
                check(w, bits, TestActivations(1, shape.columns, group_size, false, ++seed));
            }
            for (const Fill fill : {Fill::kLargest, Fill::kZero, Fill::kRandom}) {
                for (const size_t columns : {128, 300, 1024}) {
                    const TestMatrix w(8, columns, bits, group_size, fill, ++seed);
                    check(w, bits, TestActivations(1, columns, group_size, true, ++seed));
                }
            }
        }
    }
}

TEST(reference_agrees_with_the_oracle) { for_every_case(check_against_oracle); }

TEST(every_table_gives_the_bits_of_the_reference) { for_every_case(check_tables); }

TEST(a_range_of_rows_is_computed_alone) {
    for (const int bits : bit_widths()) {
        const TestMatrix w(22, 192, bits, 64, Fill::kRandom, 7);
        const TestActivations x(1, 192, 64, false, 8);
        GuardedBuffer<float> all(w.rows);
        reference_table().gemv[bits](&w.packed, &x.rows, all.data(), 0, w.rows);
        const size_t ranges[][2] = {{0, 4}, {4, 8}, {4, 16}, {8, 22}, {20, 22}, {12, 12}};
        for (const KernelTable* table : runnable_tables()) {
            for (const auto& range : ranges) {
                GuardedBuffer<float> y(w.rows);
                table->gemv[bits](&w.packed, &x.rows, y.data(), range[0], range[1]);
                check_same_bits(y.data() + range[0], all.data() + range[0], range[1] - range[0],
                                table->name);
                for (size_t row = 0; row < w.rows; ++row) {
                    CHECK(y.untouched(row) == (row < range[0] || row >= range[1]));
                }
            }
        }
    }
}

TEST(a_scale_that_is_no_number_leaves_none) {
    for (const int bits : bit_widths()) {
        for (const size_t group_size : group_sizes()) {
            TestMatrix w(10, 300, bits, group_size, Fill::kRandom, 5);
            const size_t last = w.groups - 1;
            TestActivations x(1, 300, group_size, false, 6);
            x.scales[0] = 0.0f;  // times infinity is NaN
            for (const size_t group : {size_t{0}, last}) {
                for (const uint16_t half : {0x7c00, 0xfc00, 0x7e00, 0xfe01}) {
                    // Rows 1 and 9; the second stands in the last block, which is not whole.
                    uint16_t before[2];
                    for (const size_t i : {0, 1}) {
                        uint8_t* scale =
                            w.blocks.data() + 2 * i * w.packed.block_bytes + 2 * (group * 4 + 1);
                        std::memcpy(&before[i], scale, sizeof(half));
                        std::memcpy(scale, &half, sizeof(half));
                    }
                    GuardedBuffer<float> expected(w.rows);
                    reference_table().gemv[bits](&w.packed, &x.rows, expected.data(), 0, w.rows);
                    for (const KernelTable* table : runnable_tables()) {
                        GuardedBuffer<float> y(w.rows);
                        table->gemv[bits](&w.packed, &x.rows, y.data(), 0, w.rows);
                        check_same_values(y.data(), expected.data(), w.rows, table->name);
                        for (size_t row = 0; row < w.rows; ++row) {
                            CHECK_EQUAL(std::isfinite(y[row]), row != 1 && row != 9);
                        }
                    }
                    for (const size_t i : {0, 1}) {
                        std::memcpy(
                            w.blocks.data() + 2 * i * w.packed.block_bytes + 2 * (group * 4 + 1),
                            &before[i], sizeof(half));
                    }
                }
            }
            // A group of activations without a scale reaches every row.
            std::memset(x.codes.data(), 0, group_size);
            x.sums[0] = 0;
            x.scales[0] = NAN;
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> y(w.rows);
                table->gemv[bits](&w.packed, &x.rows, y.data(), 0, w.rows);
                for (size_t row = 0; row < w.rows; ++row) CHECK(std::isnan(y[row]));
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
