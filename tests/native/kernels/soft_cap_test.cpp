// The soft cap, and with it the hyperbolic tangent: the reference against float64, every table
// against the reference by ==.
#include <cmath>
#include <cstring>

#include "tests/native/support/check.h"
#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

TEST(the_reference_agrees_with_the_c_library) {
    for (const float cap : {1.0f, 30.0f, 0.3f}) {
        // From far below the polynomial's end to where the tangent is 1, of both signs.
        constexpr size_t kCount = 200001;
        GuardedBuffer<float> x(kCount);
        for (size_t i = 0; i < kCount; ++i) {
            const float magnitude = std::exp2f(static_cast<float>(i / 2) * (40.0f / kCount) - 15);
            x[i] = cap * (i % 2 == 0 ? magnitude : -magnitude);
        }
        const std::vector<float> before(x.data(), x.data() + kCount);
        reference_table().soft_cap(x.data(), kCount, cap);
        for (size_t i = 0; i < kCount; ++i) {
            const double c = cap;
            const double expected = c * std::tanh(before[i] / c);
            // Two quotients, the exponential's three roundings at most doubled, two sums, one
            // product.
            CHECK(std::fabs(x[i] - expected) <= sum_tolerance(std::fabs(expected), 8));
        }
    }
}

TEST(far_from_zero_stands_the_cap) {
    const float cap = 30.0f;
    for (const KernelTable* table : runnable_tables()) {
        float x[] = {1e4f, -1e4f, 3e38f, -3e38f, 0.0f, -0.0f, 0x1p-140f};
        table->soft_cap(x, std::size(x), cap);
        const float expected[] = {cap, -cap, cap, -cap, 0.0f, 0.0f, 0x1p-140f};
        for (size_t i = 0; i < 6; ++i) CHECK_EQUAL(x[i], expected[i]);
        CHECK(std::fabs(x[6] - expected[6]) <= 30 * 0x1p-149f);
    }
}

TEST(what_is_not_finite_stays_so) {
    for (const KernelTable* table : runnable_tables()) {
        for (const float bad : {INFINITY, -INFINITY, std::nanf("")}) {
            for (const size_t at : {size_t{0}, size_t{15}, size_t{16}, size_t{18}}) {
                GuardedBuffer<float> x(19);
                for (size_t i = 0; i < x.size(); ++i) x[i] = 1.0f;
                x[at] = bad;
                table->soft_cap(x.data(), x.size(), 2.0f);
                for (size_t i = 0; i < x.size(); ++i) CHECK_EQUAL(std::isfinite(x[i]), i != at);
            }
        }
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    static const float rare[] = {0.0f,   -0.0f,          0x1p-140f,       0x1.2p-1f, 0x1.1ffffep-1f,
                                 -16.0f, 0x1.2p-1f * 30, -0x1.2p-1f * 30, 1e30f,     -1e30f};
    for (const size_t n : vector_lengths()) {
        for (const float cap : {1.0f, 30.0f, 1e-30f}) {
            Random random(n);
            GuardedBuffer<float> expected(n);
            for (size_t i = 0; i < n; ++i) {
                expected[i] =
                    random.integer(0, 3) == 0 ? rare[random.integer(0, 9)] : random.real(40.0f);
            }
            const std::vector<float> x(expected.data(), expected.data() + n);
            reference_table().soft_cap(expected.data(), n, cap);
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> out(n);
                std::memcpy(out.data(), x.data(), n * sizeof(float));
                table->soft_cap(out.data(), n, cap);
                check_same_values(out.data(), expected.data(), n, table->name);
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
