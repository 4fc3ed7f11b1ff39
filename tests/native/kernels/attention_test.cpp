// Attention over both caches and the rounding of the fp16 one: the reference against float64, every
// table against the reference by ==, windows that begin inside a chunk, caches that are rings, and
// queries that may not notice each other.
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

// Attention over a cache in fp16 and in int8, as one interface.
struct F16 {
    using Element = uint16_t;
    static constexpr const char* kName = "fp16";
    static Element random_element(Random& random, bool may_be_tiny) {
        if (may_be_tiny && random.integer(0, 20) == 0) {
            return static_cast<uint16_t>(random.integer(0, 0x3ff));
        }
        return static_cast<uint16_t>((random.bits() & 0x8000) |
                                     (0x3000 + random.integer(0, 0xfff)));
    }
    static double value(Element element, float) { return half_value(element); }
    static void run(const KernelTable& table, const float* queries, size_t count,
                    const Element* keys, const Element* values, const float*, const float*,
                    size_t stride, size_t ring, size_t head_size, size_t begin, size_t end,
                    const ScoreChange* change, float* out) {
        const CacheF16 cache = {keys, values, stride, ring};
        table.attention_f16(queries, count, &cache, head_size, begin, end, change, out);
    }
};
struct S8 {
    using Element = int8_t;
    static constexpr const char* kName = "int8";
    static Element random_element(Random& random, bool) {
        const int rare[] = {127, -127, 0};
        return static_cast<int8_t>(random.integer(0, 20) == 0 ? rare[random.integer(0, 2)]
                                                              : random.integer(-127, 127));
    }
    static double value(Element element, float scale) {
        return static_cast<double>(element) * static_cast<double>(scale);
    }
    static void run(const KernelTable& table, const float* queries, size_t count,
                    const Element* keys, const Element* values, const float* key_scales,
                    const float* value_scales, size_t stride, size_t ring, size_t head_size,
                    size_t begin, size_t end, const ScoreChange* change, float* out) {
        const CacheS8 cache = {keys, values, key_scales, value_scales, stride, ring};
        table.attention_s8(queries, count, &cache, head_size, begin, end, change, out);
    }
};

template <class Kind>
struct Case {
    using Element = typename Kind::Element;
    size_t count;
    size_t head_size;
    size_t stride;
    size_t begin;
    size_t end;
    GuardedBuffer<float> queries;
    GuardedBuffer<Element> keys;
    GuardedBuffer<Element> values;
    GuardedBuffer<float> key_scales;
    GuardedBuffer<float> value_scales;
    GuardedBuffer<float> slopes;  // [count]
    float cap = 0.0f;
    bool sloped = false;

    Case(size_t queries_count, size_t d, size_t first, size_t last, float limit, uint64_t seed)
        : count(queries_count),
          head_size(d),
          stride(d + 10),
          begin(first),
          end(last),
          queries(count * d),
          keys((last - 1) * stride + d),
          values((last - 1) * stride + d),
          key_scales(last),
          value_scales(last),
          slopes(queries_count) {
        Random random(seed);
        for (size_t i = 0; i < queries.size(); ++i) queries[i] = random.real(limit);
        for (size_t i = 0; i < keys.size(); ++i) {
            keys[i] = Kind::random_element(random, false);
            values[i] = Kind::random_element(random, true);
        }
        // Up to 2/128, and now and then nothing: what the quantiser makes of zeros.
        for (size_t t = 0; t < last; ++t) {
            key_scales[t] = t % 19 == 7 ? 0.0f : std::fabs(random.real(0x1p-6f));
            value_scales[t] = t % 23 == 5 ? 0.0f : std::fabs(random.real(0x1p-6f));
        }
        for (size_t q = 0; q < count; ++q) slopes[q] = std::fabs(random.real(0.25f));
    }

    void run(const KernelTable& table, float* out) const { run_queries(table, 0, count, out); }
    void run_queries(const KernelTable& table, size_t first, size_t n, float* out) const {
        const ScoreChange change = {cap, sloped ? slopes.data() + first : nullptr};
        Kind::run(table, queries.data() + first * head_size, n, keys.data(), values.data(),
                  key_scales.data(), value_scales.data(), stride, end, head_size, begin, end,
                  cap != 0 || sloped ? &change : nullptr, out);
    }
    // The same positions in a cache of `ring` rows, which holds nothing else.
    void run_ring(const KernelTable& table, size_t ring, float* out) const {
        GuardedBuffer<Element> ring_keys(ring * head_size);
        GuardedBuffer<Element> ring_values(ring * head_size);
        GuardedBuffer<float> ring_key_scales(ring);
        GuardedBuffer<float> ring_value_scales(ring);
        for (size_t t = begin; t < end; ++t) {
            const size_t row = t % ring;
            for (size_t i = 0; i < head_size; ++i) {
                ring_keys[row * head_size + i] = keys[t * stride + i];
                ring_values[row * head_size + i] = values[t * stride + i];
            }
            ring_key_scales[row] = key_scales[t];
            ring_value_scales[row] = value_scales[t];
        }
        const ScoreChange change = {cap, sloped ? slopes.data() : nullptr};
        Kind::run(table, queries.data(), count, ring_keys.data(), ring_values.data(),
                  ring_key_scales.data(), ring_value_scales.data(), head_size, ring, head_size,
                  begin, end, cap != 0 || sloped ? &change : nullptr, out);
    }
    std::string describe() const {
        std::ostringstream text;
        text << Kind::kName << ", " << count << " queries of " << head_size << " over positions "
             << begin << " to " << end << (sloped ? ", ALiBi" : "") << (cap != 0 ? ", cap" : "");
        return text.str();
    }
};

template <class Kind, typename Check>
void for_every_case(Check check) {
    uint64_t seed = 1;
    const size_t ranges[][2] = {{0, 1},   {0, 2},   {0, 15},  {0, 16},   {0, 63},
                                {0, 64},  {0, 65},  {0, 128}, {0, 130},  {17, 100},
                                {63, 64}, {63, 66}, {64, 65}, {70, 129}, {100, 300}};
    for (const auto& range : ranges) {
        for (const size_t head_size : {2, 8, 16, 30, 64, 128}) {
            for (const size_t count : {1, 2, 4, 5}) {
                check(Case<Kind>(count, head_size, range[0], range[1], 3.0f, ++seed));
            }
        }
    }
    check(Case<Kind>(8, 256, 0, 70, 1.0f, ++seed));
    // Scores so far apart that almost every weight is zero.
    check(Case<Kind>(2, 64, 3, 200, 400.0f, ++seed));
    // Scores with a cap, with a slope and with both; small caps, so that they bite.
    for (const auto& range : {ranges[0], ranges[3], ranges[6], ranges[9], ranges[11], ranges[14]}) {
        for (const size_t head_size : {2, 30, 64}) {
            for (const size_t count : {1, 4, 5}) {
                for (const int which : {1, 2, 3}) {
                    Case<Kind> c(count, head_size, range[0], range[1], 3.0f, ++seed);
                    c.cap = (which & 1) != 0 ? 1.5f : 0.0f;
                    c.sloped = (which & 2) != 0;
                    check(c);
                }
            }
        }
    }
}

template <class Kind>
void compare_with_the_oracle() {
    for_every_case<Kind>([](const Case<Kind>& c) {
        GuardedBuffer<float> out(c.count * c.head_size);
        c.run(reference_table(), out.data());
        const size_t positions = c.end - c.begin;
        std::vector<double> keys(positions * c.head_size);
        std::vector<double> values(positions * c.head_size);
        for (size_t t = 0; t < positions; ++t) {
            for (size_t i = 0; i < c.head_size; ++i) {
                const size_t row = c.begin + t;
                keys[t * c.head_size + i] =
                    Kind::value(c.keys[row * c.stride + i], c.key_scales[row]);
                values[t * c.head_size + i] =
                    Kind::value(c.values[row * c.stride + i], c.value_scales[row]);
            }
        }
        for (size_t query = 0; query < c.count; ++query) {
            const float* q = c.queries.data() + query * c.head_size;
            // How far a score may be off: keys are below 2, and the dot passes through head_size /
            // 16 + 6 roundings, one more for a scale.
            double magnitude = 0.0;
            for (size_t i = 0; i < c.head_size; ++i) magnitude += 2.0 * std::fabs(q[i]);
            magnitude /= std::sqrt(static_cast<double>(c.head_size));
            const double score_error =
                sum_tolerance(magnitude, static_cast<double>(c.head_size) / 16 + 10) +
                // A cap rounds a few times more, and so does the largest product with a slope.
                sum_tolerance(
                    double{c.cap} + (c.sloped ? 0.25 * static_cast<double>(positions) : 0), 8);
            std::vector<double> magnitudes;
            const std::vector<double> expected =
                oracle::attention(q, keys, values, positions, c.head_size, &magnitudes,
                                  double{c.cap}, c.sloped ? double{c.slopes[query]} : 0.0);
            for (size_t i = 0; i < c.head_size; ++i) {
                // Weights are off by the scores' error and by exp's few roundings, up and down; a
                // scale and every sum add one rounding per position, sums a few per chunk. Weights
                // below
                // exp(-87) are taken as zero.
                const double roundings = 3.0 * static_cast<double>(positions) + 20.0 +
                                         static_cast<double>(positions) / 8;
                const double tolerance = magnitudes[i] * 4.0 * score_error +
                                         sum_tolerance(magnitudes[i], roundings) +
                                         static_cast<double>(positions) * 2.0 * std::exp(-86.0);
                CHECK(std::fabs(out[query * c.head_size + i] - expected[i]) <= tolerance);
            }
        }
    });
}

TEST(the_reference_agrees_with_the_oracle) {
    compare_with_the_oracle<F16>();
    compare_with_the_oracle<S8>();
}

template <class Kind>
void compare_with_the_reference() {
    for (const KernelTable* table : runnable_tables()) {
        for_every_case<Kind>([table](const Case<Kind>& c) {
            GuardedBuffer<float> expected(c.count * c.head_size);
            GuardedBuffer<float> out(c.count * c.head_size);
            c.run(reference_table(), expected.data());
            c.run(*table, out.data());
            check_same_bits(out.data(), expected.data(), out.size(),
                            std::string(table->name) + ", " + c.describe());
        });
    }
}

TEST(every_table_gives_the_bits_of_the_reference) {
    compare_with_the_reference<F16>();
    compare_with_the_reference<S8>();
}

// One key, value or query that is not finite, at every place that a chunk treats in its own way.
void check_fp16(float bad, size_t at, size_t end, bool changed) {
    Case<F16> c(5, 30, 3, end, 3.0f, at);
    c.cap = changed ? 2.0f : 0.0f;
    c.sloped = changed;
    const uint16_t half = std::isnan(bad) ? 0x7e00 : bad > 0 ? 0x7c00 : 0xfc00;
    const auto outputs = [&](const KernelTable& table) {
        GuardedBuffer<float> out(c.count * c.head_size);
        c.run(table, out.data());
        return out;
    };
    for (const int what : {0, 1, 2}) {
        const uint16_t key = c.keys[at * c.stride + 7];
        const uint16_t value = c.values[at * c.stride + 7];
        const float query = c.queries[2 * c.head_size + 7];
        if (what == 0) c.keys[at * c.stride + 7] = half;
        if (what == 1) c.values[at * c.stride + 7] = half;
        if (what == 2) c.queries[2 * c.head_size + 7] = bad;
        const GuardedBuffer<float> expected = outputs(reference_table());
        for (const KernelTable* table : runnable_tables()) {
            const GuardedBuffer<float> out = outputs(*table);
            check_same_values(out.data(), expected.data(), out.size(), table->name);
            for (size_t i = 0; i < out.size(); ++i) {
                const size_t q = i / c.head_size;
                const bool touched =
                    what == 0 || (what == 1 && i % c.head_size == 7) || (what == 2 && q == 2);
                CHECK_EQUAL(std::isfinite(out[i]), !touched);
            }
        }
        c.keys[at * c.stride + 7] = key;
        c.values[at * c.stride + 7] = value;
        c.queries[2 * c.head_size + 7] = query;
    }
}

TEST(what_is_not_finite_in_a_cache_stays_so) {
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
        for (const size_t end : {40, 64, 150}) {
            for (const size_t at : {3, 4, 39, 63, 64, 100, 149}) {
                if (at >= end) continue;
                for (const bool changed : {false, true}) check_fp16(bad, at, end, changed);
            }
        }
    }
}

TEST(a_position_without_a_scale_leaves_no_number) {
    for (const bool of_key : {true, false}) {
        for (const size_t at : {0, 1, 63, 64, 99}) {
            Case<S8> c(5, 30, 0, 100, 3.0f, at);
            (of_key ? c.key_scales : c.value_scales)[at] = NAN;
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> out(c.count * c.head_size);
                c.run(*table, out.data());
                for (size_t i = 0; i < out.size(); ++i) CHECK(std::isnan(out[i]));
            }
        }
    }
}

template <class Kind>
void compare_ring_with_straight_rows() {
    for (const KernelTable* table : runnable_tables()) {
        for (const size_t begin : {100, 128, 190, 250}) {
            Case<Kind> c(5, 30, begin, begin + 120, 3.0f, begin);
            c.sloped = begin % 4 == 2;
            GuardedBuffer<float> straight(c.count * c.head_size);
            GuardedBuffer<float> ring(c.count * c.head_size);
            c.run(*table, straight.data());
            c.run_ring(*table, 192, ring.data());
            check_same_bits(ring.data(), straight.data(), ring.size(),
                            std::string(table->name) + ", ring, " + c.describe());
        }
    }
}

TEST(a_ring_gives_the_bits_of_straight_rows) {
    compare_ring_with_straight_rows<F16>();
    compare_ring_with_straight_rows<S8>();
}

template <class Kind>
void compare_queries_alone_and_together() {
    for (const KernelTable* table : runnable_tables()) {
        Case<Kind> c(7, 64, 5, 150, 3.0f, 9);
        c.sloped = true;
        GuardedBuffer<float> together(c.count * c.head_size);
        c.run(*table, together.data());
        for (size_t query = 0; query < c.count; ++query) {
            GuardedBuffer<float> alone(c.head_size);
            c.run_queries(*table, query, 1, alone.data());
            check_same_bits(together.data() + query * c.head_size, alone.data(), c.head_size,
                            table->name);
        }
    }
}

TEST(a_query_is_computed_as_if_alone) {
    compare_queries_alone_and_together<F16>();
    compare_queries_alone_and_together<S8>();
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
