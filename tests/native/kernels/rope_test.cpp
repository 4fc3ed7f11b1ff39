// The rotary embedding: angles and rotation against float64, every table against the reference by
// ==.
#include <cmath>
#include <cstring>

#include "native/kernels/rope/rope_f32.h"
#include "tests/native/support/check.h"
#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

TEST(angles_are_accurate_to_2e_7_up_to_position_131072) {
    constexpr size_t kHalf = 64;
    GuardedBuffer<float> frequencies(kHalf);
    for (size_t i = 0; i < kHalf; ++i) {
        frequencies[i] = static_cast<float>(std::pow(500000.0, -static_cast<double>(i) / kHalf));
    }
    GuardedBuffer<float> cosines(kHalf);
    GuardedBuffer<float> sines(kHalf);
    for (size_t position = 0; position <= 131072; position += position < 300 ? 1 : 997) {
        rope_angles(position, frequencies.data(), kHalf, cosines.data(), sines.data());
        for (size_t i = 0; i < kHalf; ++i) {
            // The angle itself is one float multiplication.
            const float angle = static_cast<float>(position) * frequencies[i];
            CHECK(std::fabs(static_cast<double>(sines[i]) - std::sin(static_cast<double>(angle))) <=
                  2e-7);
            CHECK(std::fabs(static_cast<double>(cosines[i]) -
                            std::cos(static_cast<double>(angle))) <= 2e-7);
        }
    }
}

TEST(the_first_position_does_not_turn) {
    const float frequency = 1.0f;
    float cosine = 0.0f;
    float sine = 1.0f;
    rope_angles(0, &frequency, 1, &cosine, &sine);
    CHECK_EQUAL(cosine, 1.0f);
    CHECK_EQUAL(sine, 0.0f);
}

struct Case {
    GuardedBuffer<float> x;
    GuardedBuffer<float> cosines;
    GuardedBuffer<float> sines;

    Case(size_t heads, size_t head_size, uint64_t seed)
        : x(heads * head_size), cosines(head_size / 2), sines(head_size / 2) {
        Random random(seed);
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = random.integer(0, 9) == 0 ? 0x1p-140f : random.real(8.0f);
        }
        for (size_t i = 0; i < head_size / 2; ++i) {
            const double angle = static_cast<double>(random.real(3.2f));
            cosines[i] = static_cast<float>(std::cos(angle));
            sines[i] = static_cast<float>(std::sin(angle));
        }
    }
};

TEST(the_reference_agrees_with_the_oracle) {
    const Case c(3, 64, 5);
    GuardedBuffer<float> y(c.x.size());
    std::memcpy(y.data(), c.x.data(), y.size() * sizeof(float));
    reference_table().rope(y.data(), 3, 64, c.cosines.data(), c.sines.data());
    for (size_t head = 0; head < 3; ++head) {
        for (size_t i = 0; i < 32; ++i) {
            const double x0 = c.x[head * 64 + i];
            const double x1 = c.x[head * 64 + 32 + i];
            const double cosine = c.cosines[i];
            const double sine = c.sines[i];
            const double tolerance = sum_tolerance(std::fabs(x0) + std::fabs(x1), 2);
            CHECK(std::fabs(y[head * 64 + i] - (x0 * cosine - x1 * sine)) <= tolerance);
            CHECK(std::fabs(y[head * 64 + 32 + i] - (x1 * cosine + x0 * sine)) <= tolerance);
        }
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t heads : {1, 2, 5}) {
            for (const size_t head_size : {2, 6, 8, 32, 34, 64, 80, 128, 256}) {
                const Case c(heads, head_size, heads * 1000 + head_size);
                GuardedBuffer<float> expected(c.x.size());
                GuardedBuffer<float> y(c.x.size());
                std::memcpy(expected.data(), c.x.data(), y.size() * sizeof(float));
                std::memcpy(y.data(), c.x.data(), y.size() * sizeof(float));
                reference_table().rope(expected.data(), heads, head_size, c.cosines.data(),
                                       c.sines.data());
                table->rope(y.data(), heads, head_size, c.cosines.data(), c.sines.data());
                check_same_bits(
                    y.data(), expected.data(), y.size(),
                    std::string(table->name) + ", head size " + std::to_string(head_size));
            }
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
