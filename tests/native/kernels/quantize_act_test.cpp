// The activation quantiser: the reference against its definition in float64, every table against
// the reference by ==.
#include <bit>
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

struct Quantized {
    GuardedBuffer<int8_t> codes;
    GuardedBuffer<float> scales;
    GuardedBuffer<int32_t> sums;

    Quantized(const KernelTable& table, const GuardedBuffer<float>& x, size_t g)
        : codes((x.size() + 63) / 64 * 64),
          scales((x.size() + g - 1) / g),
          sums((x.size() + g - 1) / g) {
        const QuantizedRows rows = {codes.data(), scales.data(), sums.data(), codes.size(),
                                    scales.size()};
        table.quantize_act(x.data(), x.size(), g, &rows, 0);
    }
};

// Rows of ordinary size, tiny ones, huge ones, and groups of zeros.
GuardedBuffer<float> make_input(size_t k, uint64_t seed) {
    static const float limits[] = {1.0f, 40.0f, 0x1p-90f, 0x1p-101f, 0x1p-140f, 0x1p+120f, 0.0f};
    Random random(seed);
    GuardedBuffer<float> x(k);
    float limit = 1.0f;
    for (size_t i = 0; i < k; ++i) {
        if (i % 32 == 0) limit = limits[random.integer(0, 6)];
        x[i] = random.real(limit);
        if (random.integer(0, 20) == 0) x[i] = -0.0f;
    }
    return x;
}

template <typename Check>
void for_every_case(Check check) {
    uint64_t seed = 1;
    for (const size_t g : group_sizes()) {
        for (const size_t k : vector_lengths()) {
            for (int repeat = 0; repeat < 3; ++repeat) check(make_input(k, ++seed), g);
        }
    }
}

TEST(the_reference_rounds_every_number_to_the_nearest_code) {
    for_every_case([](const GuardedBuffer<float>& x, size_t g) {
        const Quantized q(reference_table(), x, g);
        for (size_t begin = 0; begin < x.size(); begin += g) {
            const size_t end = std::min(begin + g, x.size());
            double largest = 0.0;
            for (size_t i = begin; i < end; ++i) {
                largest = std::fmax(largest, std::fabs(static_cast<double>(x[i])));
            }
            const bool zero = largest < 0x1p-100;
            const double scale = zero ? 0.0 : largest / 127.0;
            CHECK_EQUAL(q.scales[begin / g], static_cast<float>(scale));
            int32_t sum = 0;
            bool reached = zero;
            for (size_t i = begin; i < end; ++i) {
                CHECK(q.codes[i] >= -127);
                // Half a step, and the two roundings of x * (127 / largest), which is at most 127.
                const double exact = zero ? 0.0 : static_cast<double>(x[i]) / scale;
                CHECK(std::fabs(exact - q.codes[i]) <= 0.5 + sum_tolerance(127.0, 2));
                sum += q.codes[i];
                reached = reached || q.codes[i] == 127 || q.codes[i] == -127;
            }
            CHECK_EQUAL(q.sums[begin / g], sum);
            CHECK(reached);
        }
        for (size_t i = x.size(); i < q.codes.size(); ++i) CHECK_EQUAL(+q.codes[i], 0);
    });
}

TEST(ties_go_to_the_even_code) {
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> x(32);
        for (size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i) - 15.5f;
        x[31] = 127.0f;
        const Quantized q(*table, x, 32);
        CHECK_EQUAL(q.scales[0], 1.0f);
        const int expected[] = {-16, -14, -14, -12, -12, -10, -10, -8};
        for (size_t i = 0; i < 8; ++i) CHECK_EQUAL(+q.codes[i], expected[i]);
        CHECK_EQUAL(+q.codes[15], 0);
        CHECK_EQUAL(+q.codes[16], 0);
        CHECK_EQUAL(+q.codes[17], 2);
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for_every_case([table](const GuardedBuffer<float>& x, size_t g) {
            const Quantized expected(reference_table(), x, g);
            const Quantized q(*table, x, g);
            const std::string where = std::string(table->name) + ", " + std::to_string(x.size()) +
                                      " numbers in groups of " + std::to_string(g);
            check_same_bits(q.codes.data(), expected.codes.data(), q.codes.size(), where);
            check_same_bits(q.scales.data(), expected.scales.data(), q.scales.size(), where);
            check_same_bits(q.sums.data(), expected.sums.data(), q.sums.size(), where);
        });
    }
}

TEST(a_row_is_written_at_its_place) {
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> x(70);
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
        GuardedBuffer<int8_t> codes(3 * 128);
        GuardedBuffer<float> scales(3 * 4);
        GuardedBuffer<int32_t> sums(3 * 4);
        const QuantizedRows rows = {codes.data(), scales.data(), sums.data(), 128, 4};
        table->quantize_act(x.data(), x.size(), 32, &rows, 1);
        for (size_t i = 0; i < codes.size(); ++i) {
            if (i < 128 || i >= 256) CHECK(codes.untouched(i));
            if (i >= 128 + 70 && i < 256) CHECK_EQUAL(+codes[i], 0);
        }
        for (size_t i = 0; i < scales.size(); ++i) {
            const bool inside = i >= 4 && i < 7;
            CHECK(scales.untouched(i) == !inside);
            CHECK(sums.untouched(i) == !inside);
        }
    }
}

TEST(what_is_not_finite_makes_its_group_nan_and_no_other) {
    constexpr uint32_t kNan = 0x7fc00000;
    const float negative_nan = std::bit_cast<float>(0xffc00001u);
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t g : group_sizes()) {
            const GuardedBuffer<float> sound = make_input(200, g);
            const Quantized expected(*table, sound, g);
            for (const float bad : {INFINITY, -INFINITY, NAN, negative_nan}) {
                for (const size_t at : {0, 1, 15, 16, 31, 63, 64, 127, 128, 190, 199}) {
                    GuardedBuffer<float> x(sound.size());
                    std::memcpy(x.data(), sound.data(), x.size() * sizeof(float));
                    x[at] = bad;
                    const Quantized q(*table, x, g);
                    for (size_t i = 0; i < x.size(); ++i) {
                        CHECK_EQUAL(+q.codes[i], i / g == at / g ? 0 : +expected.codes[i]);
                    }
                    for (size_t group = 0; group < q.scales.size(); ++group) {
                        const uint32_t sound_bits = std::bit_cast<uint32_t>(expected.scales[group]);
                        CHECK_EQUAL(std::bit_cast<uint32_t>(q.scales[group]),
                                    group == at / g ? kNan : sound_bits);
                        CHECK_EQUAL(q.sums[group], group == at / g ? 0 : expected.sums[group]);
                    }
                }
            }
        }
    }
}

TEST(the_largest_numbers_have_codes) {
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<float> x(32);
        for (size_t i = 0; i < 32; ++i) x[i] = i % 2 == 0 ? 0x1.fffffep+127f : -0x1.fffffep+127f;
        const Quantized q(*table, x, 32);
        CHECK_EQUAL(q.scales[0], 0x1.fffffep+127f / 127.0f);
        for (size_t i = 0; i < 32; ++i) CHECK_EQUAL(+q.codes[i], i % 2 == 0 ? 127 : -127);
        CHECK_EQUAL(q.sums[0], 0);
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
