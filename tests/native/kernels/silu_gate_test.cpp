// The gated activation, and with it the exponential: the reference against float64, every table
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
    reference_table().silu_gate(gate.data(), up.data(), kCount, out.data());
    for (size_t i = 0; i < kCount; ++i) {
        const double expected = oracle::silu_gate(gate[i], up[i]);
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
        table->silu_gate(gate, up, 4, out);
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
    reference_table().silu_gate(gate.data(), up.data(), kCount, expected.data());
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> out(kCount);
        table->silu_gate(gate.data(), up.data(), kCount, out.data());
        check_same_bits(out.data(), expected.data(), kCount, table->name);
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t n : vector_lengths()) {
            const Case c(n, n);
            const std::string where = std::string(table->name) + ", n = " + std::to_string(n);
            GuardedBuffer<float> expected(n);
            GuardedBuffer<float> out(n);
            reference_table().silu_gate(c.gate.data(), c.up.data(), n, expected.data());
            table->silu_gate(c.gate.data(), c.up.data(), n, out.data());
            check_same_bits(out.data(), expected.data(), n, where);
            std::memcpy(out.data(), c.gate.data(), n * sizeof(float));
            table->silu_gate(out.data(), c.up.data(), n, out.data());
            check_same_bits(out.data(), expected.data(), n, where + ", over the gate");
            std::memcpy(out.data(), c.up.data(), n * sizeof(float));
            table->silu_gate(c.gate.data(), out.data(), n, out.data());
            check_same_bits(out.data(), expected.data(), n, where + ", over the other half");
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
                    table->silu_gate(gates.data(), ups.data(), n, out.data());
                    reference_table().silu_gate(gates.data(), ups.data(), n, expected.data());
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
