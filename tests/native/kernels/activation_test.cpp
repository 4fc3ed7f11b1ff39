// The activations, and with them the exponential: the reference against float64, every table
// against the reference by ==.
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

struct Case {
    GuardedBuffer<float> gate;
    GuardedBuffer<float> up;

    Case(size_t n, uint64_t seed) : gate(n), up(n) {
        Random random(seed);
        static const float rare[] = {0.0f,   -0.0f,  0x1p-140f, 87.0f, -87.0f,
                                     -88.0f, 100.0f, -100.0f,   1e30f, -1e30f};
        for (size_t i = 0; i < n; ++i) {
            gate[i] = random.integer(0, 3) == 0 ? rare[random.integer(0, 9)] : random.real(20.0f);
            up[i] = random.real(5.0f);
        }
    }
};

TEST(the_reference_agrees_with_the_oracle) {
    // A fine grid over the range in which the exponential is not clamped.
    constexpr size_t kCount = 200001;
    GuardedBuffer<float> gate(kCount);
    GuardedBuffer<float> up(kCount);
    GuardedBuffer<float> out(kCount);
    for (size_t i = 0; i < kCount; ++i) {
        gate[i] = -86.9f + static_cast<float>(i) * (173.8f / kCount);
        up[i] = 1.5f;
    }
    reference_table().activation.silu(gate.data(), up.data(), kCount, out.data());
    for (size_t i = 0; i < kCount; ++i) {
        const double expected = oracle::silu(gate[i]) * double{up[i]};
        // The exponential passes through about three roundings, the sum, the division and the
        // product through one each.
        CHECK(std::fabs(out[i] - expected) <= sum_tolerance(std::fabs(expected), 6));
    }
}

TEST(far_from_zero_the_gate_is_open_or_shut) {
    const float gate[] = {1000.0f, -1000.0f, 88.0f, 3e38f};
    const float up[] = {2.0f, 2.0f, 2.0f, 0.5f};
    for (const KernelTable* table : runnable_tables()) {
        float out[4];
        table->activation.silu(gate, up, 4, out);
        CHECK_EQUAL(out[0], 2000.0f);
        CHECK(out[1] <= 0.0f && out[1] > -1e-30f);
        CHECK_EQUAL(out[2], 176.0f);
        CHECK_EQUAL(out[3], 1.5e38f);
    }
}

TEST(every_table_has_the_same_exponential_over_a_fine_grid) {
    // The whole range of the exponential and both ends, where it is clamped.
    constexpr size_t kCount = 50001;
    GuardedBuffer<float> gate(kCount);
    GuardedBuffer<float> up(kCount);
    for (size_t i = 0; i < kCount; ++i) {
        gate[i] = -89.0f + static_cast<float>(i) * (178.0f / kCount);
        up[i] = 1.0f;
    }
    GuardedBuffer<float> expected(kCount);
    reference_table().activation.silu(gate.data(), up.data(), kCount, expected.data());
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> out(kCount);
        table->activation.silu(gate.data(), up.data(), kCount, out.data());
        check_same_bits(out.data(), expected.data(), kCount, table->name);
    }
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                       Activation::kRelu, Activation::kQuickGelu};

TEST(the_other_activations_agree_with_the_oracle) {
    for (int i = -80000; i <= 80000; ++i) {
        const float x = static_cast<float>(i) * 1e-4f;
        float y = 0.0f;
        const ByActivation& reference = reference_table().activation;
        // Absolute errors: of Abramowitz and Stegun's 1.5e-7 half, times x, and some roundings.
        reference.gelu(&x, nullptr, 1, &y);
        CHECK(std::fabs(double{y} - oracle::gelu(x)) <= 4e-7);
        reference.gelu_tanh(&x, nullptr, 1, &y);
        CHECK(std::fabs(double{y} - oracle::gelu_tanh(x)) <= 1e-6);
        reference.quick_gelu(&x, nullptr, 1, &y);
        // 1.702 as a float is off by 2^-26 of itself, which moves the exponent by that much of it.
        CHECK(std::fabs(double{y} - oracle::quick_gelu(x)) <= 1e-6);
        reference.relu(&x, nullptr, 1, &y);
        CHECK_EQUAL(double{y}, oracle::relu(x));
    }
}

TEST(far_from_zero_an_activation_is_its_input_or_nothing) {
    for (const KernelTable* table : runnable_tables()) {
        for (const Activation activation : kActivations) {
            for (const float x : {40.0f, 1e4f, 1e30f, 3e38f}) {
                float y = 0.0f;
                table->activation[activation](&x, nullptr, 1, &y);
                CHECK_EQUAL(y, x);
            }
            const float below = -1e4f;
            float y = 1.0f;
            table->activation[activation](&below, nullptr, 1, &y);
            CHECK(std::fabs(y) < 1e-30f);
        }
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for (const Activation activation : kActivations) {
            const ActivationFunction reference = reference_table().activation[activation];
            const ActivationFunction function = table->activation[activation];
            for (const size_t n : vector_lengths()) {
                const Case c(n, n);
                const std::string where = std::string(table->name) + ", activation " +
                                          std::to_string(static_cast<int>(activation)) +
                                          ", n = " + std::to_string(n);
                GuardedBuffer<float> expected(n);
                GuardedBuffer<float> out(n);
                reference(c.gate.data(), c.up.data(), n, expected.data());
                function(c.gate.data(), c.up.data(), n, out.data());
                check_same_bits(out.data(), expected.data(), n, where);
                std::memcpy(out.data(), c.gate.data(), n * sizeof(float));
                function(out.data(), c.up.data(), n, out.data());
                check_same_bits(out.data(), expected.data(), n, where + ", over the input");
                std::memcpy(out.data(), c.up.data(), n * sizeof(float));
                function(c.gate.data(), out.data(), n, out.data());
                check_same_bits(out.data(), expected.data(), n, where + ", over the factor");
                reference(c.gate.data(), nullptr, n, expected.data());
                function(c.gate.data(), nullptr, n, out.data());
                check_same_bits(out.data(), expected.data(), n, where + ", without a factor");
            }
        }
    }
}

TEST(what_is_not_finite_stays_so_in_every_activation) {
    for (const KernelTable* table : runnable_tables()) {
        for (const Activation activation : kActivations) {
            for (const float bad : {INFINITY, -INFINITY, NAN}) {
                for (const size_t n : {1, 16, 21}) {
                    GuardedBuffer<float> x(n);
                    GuardedBuffer<float> out(n);
                    for (size_t i = 0; i < n; ++i) x[i] = i + 1 == n ? bad : 2.0f;
                    table->activation[activation](x.data(), nullptr, n, out.data());
                    CHECK(!std::isfinite(out[n - 1]));
                    for (size_t i = 0; i + 1 < n; ++i) CHECK(std::isfinite(out[i]));
                }
            }
        }
    }
}

TEST(what_is_not_finite_stays_so) {
    const float numbers[] = {INFINITY, -INFINITY, NAN, 0.0f, 1.0f, -100.0f};
    for (const KernelTable* table : runnable_tables()) {
        for (const float gate : numbers) {
            for (const float up : numbers) {
                for (const size_t n : {1, 16, 21}) {
                    GuardedBuffer<float> gates(n);
                    GuardedBuffer<float> ups(n);
                    for (size_t i = 0; i < n; ++i) gates[i] = ups[i] = 2.0f;
                    gates[n - 1] = gate;
                    ups[n - 1] = up;
                    GuardedBuffer<float> out(n);
                    GuardedBuffer<float> expected(n);
                    table->activation.silu(gates.data(), ups.data(), n, out.data());
                    reference_table().activation.silu(gates.data(), ups.data(), n, expected.data());
                    check_same_values(out.data(), expected.data(), n, table->name);
                    CHECK_EQUAL(std::isfinite(out[n - 1]),
                                std::isfinite(gate) && std::isfinite(up));
                }
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
