// The layer norm: the reference against float64, every table against the reference by ==, in place
// too.
#include <cmath>
#include <cstring>

#include "tests/native/oracle/oracle.h"
#include "tests/native/support/check.h"
#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

constexpr float kNormEpsilon = 1e-5f;

struct Case {
    GuardedBuffer<float> x;
    GuardedBuffer<float> weight;
    GuardedBuffer<float> bias;

    // Numbers around `centre`, which the norm has to take away.
    Case(size_t n, float centre, uint64_t seed) : x(n), weight(n), bias(n) {
        Random random(seed);
        for (size_t i = 0; i < n; ++i) {
            x[i] = centre + random.real(2.0f);
            weight[i] = random.real(3.0f);
            bias[i] = random.real(3.0f);
        }
    }
};

TEST(the_reference_agrees_with_the_oracle) {
    for (const size_t n : vector_lengths()) {
        for (const float centre : {0.0f, 5.0f, -100.0f}) {
            const Case c(n, centre, n);
            for (const float* bias : {static_cast<const float*>(nullptr), c.bias.data()}) {
                GuardedBuffer<float> y(n);
                reference_table().layer_norm(c.x.data(), c.weight.data(), bias, n, kNormEpsilon,
                                             y.data());
                const std::vector<double> expected =
                    oracle::layer_norm(c.x.data(), c.weight.data(), bias, n, kNormEpsilon);
                // The mean passes through n / 16 + 5 roundings of numbers as large as the centre;
                // what that moves every distance by is divided by their root.
                const double moved =
                    (std::fabs(centre) + 2.0) * (static_cast<double>(n) / 16 + 6) * kEpsilon;
                double square = 0.0;
                for (size_t i = 0; i < n; ++i) {
                    square += (c.x[i] - double{centre}) * (c.x[i] - double{centre});
                }
                const double root = std::sqrt(square / static_cast<double>(n) / 4 + kNormEpsilon);
                for (size_t i = 0; i < n; ++i) {
                    const double roundings = static_cast<double>(n / 16 + 5) / 2 + 8;
                    CHECK(std::fabs(static_cast<double>(y[i]) - expected[i]) <=
                          sum_tolerance(std::fabs(expected[i]) + 6.0, roundings) +
                              12.0 * moved / root);
                }
            }
        }
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t n : vector_lengths()) {
            for (const float centre : {0.0f, 5.0f, 1e20f}) {
                const Case c(n, centre, n + 1);
                for (const float* bias : {static_cast<const float*>(nullptr), c.bias.data()}) {
                    const std::string where =
                        std::string(table->name) + ", n = " + std::to_string(n);
                    GuardedBuffer<float> expected(n);
                    GuardedBuffer<float> y(n);
                    reference_table().layer_norm(c.x.data(), c.weight.data(), bias, n, kNormEpsilon,
                                                 expected.data());
                    table->layer_norm(c.x.data(), c.weight.data(), bias, n, kNormEpsilon, y.data());
                    check_same_bits(y.data(), expected.data(), n, where);
                    std::memcpy(y.data(), c.x.data(), n * sizeof(float));
                    table->layer_norm(y.data(), c.weight.data(), bias, n, kNormEpsilon, y.data());
                    check_same_bits(y.data(), expected.data(), n, where + ", in place");
                }
            }
        }
    }
}

TEST(a_sum_that_is_no_number_leaves_none) {
    for (const float bad : {INFINITY, -INFINITY, NAN, 0x1p+66f}) {
        for (const size_t n : {2, 16, 33, 172}) {
            Case c(n, 0.0f, n);
            c.x[n - 1] = bad;
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> y(n);
                table->layer_norm(c.x.data(), c.weight.data(), c.bias.data(), n, kNormEpsilon,
                                  y.data());
                for (size_t i = 0; i < n; ++i) CHECK(std::isnan(y[i]));
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
