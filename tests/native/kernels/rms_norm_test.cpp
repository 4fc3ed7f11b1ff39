// The RMS norm: the reference against float64, every table against the reference by ==, in place
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

template <typename Check>
void for_every_case(Check check) {
    uint64_t seed = 1;
    for (const size_t n : vector_lengths()) {
        for (const float limit : {1.0f, 300.0f, 0x1p-70f, 0x1p-130f, 0.0f}) {
            Random random(++seed);
            GuardedBuffer<float> x(n);
            GuardedBuffer<float> weight(n);
            for (size_t i = 0; i < n; ++i) {
                x[i] = random.integer(0, 9) == 0 ? -0.0f : random.real(limit);
                weight[i] = random.real(3.0f);
            }
            check(x, weight);
        }
    }
}

TEST(the_reference_agrees_with_the_oracle) {
    for_every_case([](const GuardedBuffer<float>& x, const GuardedBuffer<float>& weight) {
        const size_t n = x.size();
        GuardedBuffer<float> y(n);
        reference_table().rms_norm(x.data(), weight.data(), n, kNormEpsilon, y.data());
        const std::vector<double> expected =
            oracle::rms_norm(x.data(), weight.data(), n, kNormEpsilon);
        for (size_t i = 0; i < n; ++i) {
            // ceil(n / 16) fused steps and 4 levels of the tree under the root, which halves them;
            // then the mean, the sum with epsilon, root, division and two products.
            const double roundings = static_cast<double>(n / 16 + 5) / 2 + 6;
            CHECK(std::fabs(static_cast<double>(y[i]) - expected[i]) <=
                  sum_tolerance(std::fabs(expected[i]), roundings));
        }
    });
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for_every_case([table](const GuardedBuffer<float>& x, const GuardedBuffer<float>& weight) {
            const size_t n = x.size();
            const std::string where = std::string(table->name) + ", n = " + std::to_string(n);
            GuardedBuffer<float> expected(n);
            reference_table().rms_norm(x.data(), weight.data(), n, kNormEpsilon, expected.data());
            GuardedBuffer<float> y(n);
            table->rms_norm(x.data(), weight.data(), n, kNormEpsilon, y.data());
            check_same_bits(y.data(), expected.data(), n, where);
            std::memcpy(y.data(), x.data(), n * sizeof(float));
            table->rms_norm(y.data(), weight.data(), n, kNormEpsilon, y.data());
            check_same_bits(y.data(), expected.data(), n, where + ", in place");
        });
    }
}

TEST(a_sum_of_squares_that_is_no_number_leaves_none) {
    // 2^64 squared overflows; twice the square of 2^63.5, in two lanes, does so in the tree.
    for (const float bad : {INFINITY, -INFINITY, NAN, 0x1p+64f, -0x1.6bp+63f}) {
        for (const size_t n : {2, 16, 33, 172}) {
            GuardedBuffer<float> x(n);
            GuardedBuffer<float> weight(n);
            for (size_t i = 0; i < n; ++i) x[i] = weight[i] = 1.0f;
            x[0] = x[n - 1] = bad;
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> y(n);
                table->rms_norm(x.data(), weight.data(), n, kNormEpsilon, y.data());
                for (size_t i = 0; i < n; ++i) CHECK(std::isnan(y[i]));
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
