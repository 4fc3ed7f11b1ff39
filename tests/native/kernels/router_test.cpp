// Router, softmax and the choice of experts: the reference against float64, every table against the
// reference by ==, and choices worked out by hand.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "native/kernels/router/choose_experts.h"
#include "tests/native/support/check.h"
#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"
#include "tests/native/support/shapes.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/tolerance.h"

namespace awqe::test {
namespace {

constexpr uint32_t kExpertCounts[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 60, 128};

TEST(logits_of_the_reference_agree_with_float64) {
    uint64_t seed = 1;
    for (const size_t k : vector_lengths()) {
        Random random(++seed);
        const size_t experts = 3;
        GuardedBuffer<float> x(k);
        GuardedBuffer<float> weight(experts * k);
        GuardedBuffer<float> logits(experts);
        for (size_t i = 0; i < k; ++i) x[i] = random.real(4.0f);
        for (size_t i = 0; i < experts * k; ++i) weight[i] = random.real(1.0f);
        reference_table().router(x.data(), weight.data(), k, 0, experts, logits.data());
        for (size_t e = 0; e < experts; ++e) {
            double sum = 0.0;
            double magnitude = 0.0;
            for (size_t i = 0; i < k; ++i) {
                const double product = static_cast<double>(x[i]) * weight[e * k + i];
                sum += product;
                magnitude += std::fabs(product);
            }
            // ceil(k / 16) fused steps and 4 levels of the tree.
            const double roundings = static_cast<double>(k / 16 + 5);
            CHECK(std::fabs(static_cast<double>(logits[e]) - sum) <=
                  sum_tolerance(magnitude, roundings));
        }
    }
}

TEST(every_table_gives_the_logits_of_the_reference) {
    uint64_t seed = 100;
    for (const size_t k : vector_lengths()) {
        for (const float bad : {0.0f, INFINITY, NAN}) {
            Random random(++seed);
            const size_t experts = 11;
            GuardedBuffer<float> x(k);
            GuardedBuffer<float> weight(experts * k);
            for (size_t i = 0; i < k; ++i) x[i] = random.real(4.0f);
            for (size_t i = 0; i < experts * k; ++i) weight[i] = random.real(1.0f);
            if (bad != 0.0f) weight[k / 2] = bad;  // of the first expert alone
            for (const size_t begin : {0, 1, 4, 10, 11}) {
                GuardedBuffer<float> expected(experts);
                reference_table().router(x.data(), weight.data(), k, begin, experts,
                                         expected.data());
                if (begin == 0 && bad != 0.0f) CHECK(!std::isfinite(expected[0]));
                for (const KernelTable* table : runnable_tables()) {
                    GuardedBuffer<float> logits(experts);
                    table->router(x.data(), weight.data(), k, begin, experts, logits.data());
                    const size_t first = bad != 0.0f ? std::max<size_t>(begin, 1) : begin;
                    check_same_bits(logits.data() + first, expected.data() + first, experts - first,
                                    table->name);
                    for (size_t e = 0; e < begin; ++e) CHECK(logits.untouched(e));
                    if (begin == 0 && bad != 0.0f) CHECK(!std::isfinite(logits[0]));
                }
            }
        }
    }
}

TEST(the_softmax_of_the_reference_agrees_with_float64) {
    uint64_t seed = 200;
    for (const size_t n : kExpertCounts) {
        for (const float limit : {1.0f, 20.0f, 200.0f}) {
            Random random(++seed);
            std::vector<float> x(n);
            std::vector<float> p(n);
            for (float& v : x) v = random.real(limit);
            reference_table().softmax(x.data(), n, p.data());
            const double most = *std::max_element(x.begin(), x.end());
            double total = 0.0;
            for (const float v : x) total += std::exp(static_cast<double>(v) - most);
            for (size_t i = 0; i < n; ++i) {
                const double expected = std::exp(static_cast<double>(x[i]) - most) / total;
                // The difference's rounding, up to 400 · 2^-24, becomes a relative one; then the
                // exponential's 2 units, the sum and the division.
                CHECK(std::fabs(static_cast<double>(p[i]) - expected) <=
                      expected * (400 + 32) * kEpsilon + 0x1p-120);
            }
        }
    }
}

TEST(every_table_gives_the_softmax_of_the_reference) {
    uint64_t seed = 300;
    for (const size_t n : vector_lengths()) {
        for (const float limit : {1.0f, 30.0f, 1000.0f, 0x1p+127f}) {
            Random random(++seed);
            GuardedBuffer<float> x(n);
            GuardedBuffer<float> expected(n);
            for (size_t i = 0; i < n; ++i) x[i] = random.real(limit);
            reference_table().softmax(x.data(), n, expected.data());
            for (const KernelTable* table : runnable_tables()) {
                GuardedBuffer<float> p(n);
                table->softmax(x.data(), n, p.data());
                if (std::isnan(expected[0])) {  // a distance that has overflowed
                    for (size_t i = 0; i < n; ++i) CHECK(std::isnan(p[i]));
                    continue;
                }
                check_same_bits(p.data(), expected.data(), n, table->name);
                std::memcpy(p.data(), x.data(), n * sizeof(float));
                table->softmax(p.data(), n, p.data());
                check_same_bits(p.data(), expected.data(), n,
                                std::string(table->name) + ", in place");
            }
        }
    }
}

TEST(a_logit_that_is_no_number_leaves_none) {
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
        for (const size_t n : {1, 2, 16, 17, 60}) {
            for (const size_t at : {size_t{0}, n / 2, n - 1}) {
                std::vector<float> x(n, 1.0f);
                x[at] = bad;
                for (const KernelTable* table : runnable_tables()) {
                    std::vector<float> p(n);
                    table->softmax(x.data(), n, p.data());
                    for (const float v : p) CHECK(std::isnan(v));
                    std::vector<Choice> chosen(n);
                    for (const Routing routing : {Routing::kSoftmax, Routing::kSoftmaxRenormalised,
                                                  Routing::kSparsemixer}) {
                        const auto count = static_cast<uint32_t>(std::min<size_t>(n, 2));
                        const RoutingRule rule = {routing, static_cast<uint32_t>(n), count, 0.01f};
                        choose_experts(rule, table->softmax, x.data(), p.data(), chosen.data());
                        bool any_nan = false;
                        for (uint32_t i = 0; i < count; ++i) {
                            CHECK(chosen[i].expert < n);
                            CHECK(i == 0 || chosen[i].expert > chosen[i - 1].expert);
                            any_nan |= std::isnan(chosen[i].weight);
                        }
                        CHECK(any_nan);
                    }
                }
            }
        }
    }
}

// What a rule makes of logits, with every table.
std::vector<Choice> choices(const RoutingRule& rule, const std::vector<float>& logits) {
    std::vector<Choice> expected;
    for (const KernelTable* table : runnable_tables()) {
        std::vector<float> scratch(logits.size());
        std::vector<Choice> chosen(rule.count);
        choose_experts(rule, table->softmax, logits.data(), scratch.data(), chosen.data());
        if (expected.empty()) expected = chosen;
        for (uint32_t i = 0; i < rule.count; ++i) {
            CHECK_EQUAL(chosen[i].expert, expected[i].expert);
            CHECK(std::memcmp(&chosen[i].weight, &expected[i].weight, sizeof(float)) == 0);
        }
    }
    return expected;
}

TEST(the_largest_are_chosen_in_ascending_order_and_the_first_of_equal_ones) {
    const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 2.0f, 0.5f, 3.0f, 0.5f};
    double total = 0.0;
    for (const float v : logits) total += std::exp(static_cast<double>(v));
    const RoutingRule plain = {Routing::kSoftmax, 7, 4, 0.0f};
    const std::vector<Choice> four = choices(plain, logits);
    const uint32_t expected[] = {0, 1, 3, 5};  // of 0, 4 and 6 the first
    double shares = 0.0;
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK_EQUAL(four[i].expert, expected[i]);
        const double share = std::exp(static_cast<double>(logits[expected[i]])) / total;
        CHECK(std::fabs(static_cast<double>(four[i].weight) - share) < 1e-6);
        shares += share;
    }
    const RoutingRule renormalised = {Routing::kSoftmaxRenormalised, 7, 4, 0.0f};
    const std::vector<Choice> whole = choices(renormalised, logits);
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK_EQUAL(whole[i].expert, expected[i]);
        CHECK(std::fabs(whole[i].weight - four[i].weight / static_cast<float>(shares)) < 1e-6f);
    }
    const RoutingRule all = {Routing::kSoftmax, 7, 7, 0.0f};
    for (uint32_t i = 0; i < 7; ++i) CHECK_EQUAL(choices(all, logits)[i].expert, i);
    // Probabilities that have underflowed are equal.
    const std::vector<Choice> far = choices({Routing::kSoftmax, 3, 2, 0.0f}, {-300, -200, 0});
    CHECK_EQUAL(far[0].expert, 0u);
    CHECK_EQUAL(far[1].expert, 2u);
    CHECK_EQUAL(far[0].weight, 0.0f);
}

TEST(sparsemixer_weighs_each_choice_among_those_near_it) {
    // 2 epsilon is 0.2. The largest is 10 (expert 2): 9 and 8.5 lie within 20 % of it, 7 does not.
    const RoutingRule rule = {Routing::kSparsemixer, 5, 2, 0.1f};
    const std::vector<Choice> two = choices(rule, {7.0f, 9.0f, 10.0f, 8.5f, -10.0f});
    CHECK_EQUAL(two[0].expert, 1u);
    CHECK_EQUAL(two[1].expert, 2u);
    const double first = 1.0 / (1.0 + std::exp(-1.0) + std::exp(-1.5));
    // Without the first choice the largest is 9; (9 - 7) / 9 is more than 0.2.
    const double second = 1.0 / (1.0 + std::exp(-0.5));
    CHECK(std::fabs(static_cast<double>(two[1].weight) - first) < 1e-6);
    CHECK(std::fabs(static_cast<double>(two[0].weight) - second) < 1e-6);
    // Nothing near either: both weights are 1, and their sum 2.
    const std::vector<Choice> apart = choices(rule, {1.0f, 2.0f, 4.0f, 8.0f, 16.0f});
    CHECK_EQUAL(apart[0].expert, 3u);
    CHECK_EQUAL(apart[1].expert, 4u);
    CHECK_EQUAL(apart[0].weight, 1.0f);
    CHECK_EQUAL(apart[1].weight, 1.0f);
    // Below zero the divisor is the magnitude of the other logit.
    const std::vector<Choice> negative = choices(rule, {-10.0f, -9.0f, -20.0f, -30.0f, -40.0f});
    CHECK_EQUAL(negative[0].expert, 0u);
    CHECK_EQUAL(negative[1].expert, 1u);
    CHECK(std::fabs(static_cast<double>(negative[1].weight) - 1.0 / (1.0 + std::exp(-1.0))) < 1e-6);
    // Zeros: nothing by nothing keeps.
    const std::vector<Choice> zeros = choices(rule, {0.0f, 0.0f, 0.0f, 0.0f, 0.0f});
    CHECK_EQUAL(zeros[0].expert, 0u);
    CHECK_EQUAL(zeros[0].weight, 0.2f);
    CHECK_EQUAL(zeros[1].expert, 1u);
    CHECK_EQUAL(zeros[1].weight, 0.25f);
}

TEST(the_share_of_a_shared_expert_is_the_logistic_function) {
    for (const float logit : {-100.0f, -5.0f, -0.1f, 0.0f, 0.1f, 5.0f, 100.0f}) {
        const double expected = 1.0 / (1.0 + std::exp(-static_cast<double>(logit)));
        for (const KernelTable* table : runnable_tables()) {
            const double share = shared_weight(table->softmax, logit);
            CHECK(std::fabs(share - expected) <= expected * 8 * kEpsilon + 0x1p-120);
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
