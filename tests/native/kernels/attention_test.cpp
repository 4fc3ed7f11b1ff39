// Attention and the rounding of the cache: the reference against float64, every table against the
// reference by ==, windows that begin inside a chunk, and queries that may not notice each other.
#include <cmath>
#include <cstring>

#include "tests/native/oracle/oracle.h"
#include "tests/native/support/check.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/test_matrix.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

struct Case {
    size_t count;
    size_t head_size;
    size_t stride;
    size_t begin;
    size_t end;
    GuardedBuffer<float> queries;
    GuardedBuffer<uint16_t> keys;
    GuardedBuffer<uint16_t> values;

    Case(size_t queries_count, size_t d, size_t first, size_t last, float limit, uint64_t seed)
        : count(queries_count),
          head_size(d),
          stride(d + 10),
          begin(first),
          end(last),
          queries(count * d),
          keys((last - 1) * stride + d),
          values((last - 1) * stride + d) {
        Random random(seed);
        for (size_t i = 0; i < queries.size(); ++i) queries[i] = random.real(limit);
        for (size_t i = 0; i < keys.size(); ++i) {
            keys[i] = static_cast<uint16_t>((random.bits() & 0x8000) |
                                            (0x3000 + random.integer(0, 0xfff)));
            values[i] = random.integer(0, 20) == 0
                            ? static_cast<uint16_t>(random.integer(0, 0x3ff))
                            : static_cast<uint16_t>((random.bits() & 0x8000) |
                                                    (0x3000 + random.integer(0, 0xfff)));
        }
    }

    void run(const KernelTable& table, float* out) const {
        table.attention(queries.data(), count, keys.data(), values.data(), stride, head_size, begin,
                        end, out);
    }
    std::string describe() const {
        std::ostringstream text;
        text << count << " queries of " << head_size << " over positions " << begin << " to "
             << end;
        return text.str();
    }
};

template <typename Check>
void for_every_case(Check check) {
    uint64_t seed = 1;
    const size_t ranges[][2] = {{0, 1},   {0, 2},   {0, 15},  {0, 16},   {0, 63},
                                {0, 64},  {0, 65},  {0, 128}, {0, 130},  {17, 100},
                                {63, 64}, {63, 66}, {64, 65}, {70, 129}, {100, 300}};
    for (const auto& range : ranges) {
        for (const size_t head_size : {2, 8, 16, 30, 64, 128}) {
            for (const size_t count : {1, 2, 4, 5}) {
                check(Case(count, head_size, range[0], range[1], 3.0f, ++seed));
            }
        }
    }
    check(Case(8, 256, 0, 70, 1.0f, ++seed));
    // Scores so far apart that almost every weight is zero.
    check(Case(2, 64, 3, 200, 400.0f, ++seed));
}

TEST(the_reference_agrees_with_the_oracle) {
    for_every_case([](const Case& c) {
        GuardedBuffer<float> out(c.count * c.head_size);
        c.run(reference_table(), out.data());
        const size_t positions = c.end - c.begin;
        std::vector<double> keys(positions * c.head_size);
        std::vector<double> values(positions * c.head_size);
        for (size_t t = 0; t < positions; ++t) {
            for (size_t i = 0; i < c.head_size; ++i) {
                keys[t * c.head_size + i] = half_value(c.keys[(c.begin + t) * c.stride + i]);
                values[t * c.head_size + i] = half_value(c.values[(c.begin + t) * c.stride + i]);
            }
        }
        for (size_t query = 0; query < c.count; ++query) {
            const float* q = c.queries.data() + query * c.head_size;
            // How far a score may be off: half are below 2, and the dot passes through head_size /
            // 16 + 6 roundings.
            double magnitude = 0.0;
            for (size_t i = 0; i < c.head_size; ++i) magnitude += 2.0 * std::fabs(q[i]);
            magnitude /= std::sqrt(static_cast<double>(c.head_size));
            const double score_error =
                sum_tolerance(magnitude, static_cast<double>(c.head_size) / 16 + 9);
            std::vector<double> magnitudes;
            const std::vector<double> expected =
                oracle::attention(q, keys, values, positions, c.head_size, &magnitudes);
            for (size_t i = 0; i < c.head_size; ++i) {
                // Weights are off by the scores' error and by exp's few roundings, up and down;
                // every sum adds one rounding per position and a few per chunk. Weights below
                // exp(-87) are taken as zero.
                const double roundings = 2.0 * static_cast<double>(positions) + 20.0 +
                                         static_cast<double>(positions) / 8;
                const double tolerance = magnitudes[i] * 4.0 * score_error +
                                         sum_tolerance(magnitudes[i], roundings) +
                                         static_cast<double>(positions) * 2.0 * std::exp(-86.0);
                CHECK(std::fabs(out[query * c.head_size + i] - expected[i]) <= tolerance);
            }
        }
    });
}

TEST(every_table_gives_the_bits_of_the_reference) {
    for (const KernelTable* table : runnable_tables()) {
        for_every_case([table](const Case& c) {
            GuardedBuffer<float> expected(c.count * c.head_size);
            GuardedBuffer<float> out(c.count * c.head_size);
            c.run(reference_table(), expected.data());
            c.run(*table, out.data());
            check_same_bits(out.data(), expected.data(), out.size(),
                            std::string(table->name) + ", " + c.describe());
        });
    }
}

TEST(a_query_is_computed_as_if_alone) {
    for (const KernelTable* table : runnable_tables()) {
        const Case c(7, 64, 5, 150, 3.0f, 9);
        GuardedBuffer<float> together(c.count * c.head_size);
        c.run(*table, together.data());
        for (size_t query = 0; query < c.count; ++query) {
            GuardedBuffer<float> alone(c.head_size);
            table->attention(c.queries.data() + query * c.head_size, 1, c.keys.data(),
                             c.values.data(), c.stride, c.head_size, c.begin, c.end, alone.data());
            check_same_bits(together.data() + query * c.head_size, alone.data(), c.head_size,
                            table->name);
        }
    }
}

TEST(halves_are_rounded_to_nearest_even) {
    // Every half, the point midway to its neighbour, and the floats on either side of that.
    GuardedBuffer<float> x(4 * 0x7bff);
    std::vector<uint16_t> expected;
    for (uint16_t half = 0; half < 0x7bff; ++half) {
        const double middle = (half_value(half) + half_value(static_cast<uint16_t>(half + 1))) / 2;
        const float inputs[] = {static_cast<float>(half_value(half)), static_cast<float>(middle),
                                std::nextafterf(static_cast<float>(middle), 0.0f),
                                std::nextafterf(static_cast<float>(middle), 1e9f)};
        const int results[] = {half, half + (half & 1), half, half + 1};
        for (int i = 0; i < 4; ++i) {
            const bool negative = half % 3 == 1;
            x[expected.size()] = negative ? -inputs[i] : inputs[i];
            expected.push_back(static_cast<uint16_t>(results[i] | (negative ? 0x8000 : 0)));
        }
    }
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<uint16_t> out(x.size());
        table->store_half(x.data(), x.size(), out.data());
        check_same_bits(out.data(), expected.data(), out.size(), table->name);
    }
}

TEST(halves_of_any_count_are_stored_and_no_more) {
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t n : vector_lengths()) {
            Random random(n);
            GuardedBuffer<float> x(n);
            for (size_t i = 0; i < n; ++i) x[i] = random.real(i % 7 == 0 ? 0x1p-20f : 70000.0f);
            GuardedBuffer<uint16_t> expected(n);
            GuardedBuffer<uint16_t> out(n);
            reference_table().store_half(x.data(), n, expected.data());
            table->store_half(x.data(), n, out.data());
            check_same_bits(out.data(), expected.data(), n, table->name);
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
