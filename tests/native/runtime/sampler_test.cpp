// Each step of sampling by itself, the shares of a long run, and the exact tokens of a fixed seed.
#include "native/runtime/sampler.h"

#include <cmath>
#include <map>

#include "native/failure/failure.h"
#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

awqe_sampling plain() {
    awqe_sampling options = {};
    options.struct_size = sizeof(options);
    options.temperature = 1;
    options.top_p = 1;
    options.repetition_penalty = 1;
    options.seed = 7;
    return options;
}

// Probabilities 8/15, 4/15, 2/15, 1/15 in an order that is not sorted.
const std::vector<float> kLogits = {std::log(2.0f), std::log(8.0f), std::log(1.0f), std::log(4.0f)};

std::map<uint32_t, double> shares(const awqe_sampling& options, const std::vector<float>& logits,
                                  const std::vector<uint32_t>& context = {}) {
    Sampler sampler(options);
    constexpr int kDraws = 30000;
    std::map<uint32_t, double> result;
    for (int i = 0; i < kDraws; ++i) {
        result[sampler.sample(logits.data(), logits.size(), context.data(), context.size())] +=
            1.0 / kDraws;
    }
    return result;
}

void check_shares(const std::map<uint32_t, double>& actual,
                  const std::map<uint32_t, double>& expected) {
    CHECK_EQUAL(actual.size(), expected.size());
    for (const auto& [token, share] : expected) {
        CHECK(actual.count(token) == 1);
        CHECK(std::fabs(actual.at(token) - share) <
              0.015);  // five standard deviations of 30,000 draws
    }
}

}  // namespace

TEST(exponential_is_accurate) {
    for (double x = 0; x > -708; x -= 0.37) {
        CHECK(std::fabs(exp_nonpositive(x) / std::exp(x) - 1) < 1e-15);
    }
    CHECK_EQUAL(exp_nonpositive(0), 1.0);
    CHECK_EQUAL(exp_nonpositive(-709), 0.0);
    CHECK_EQUAL(exp_nonpositive(-1e300), 0.0);
    CHECK_EQUAL(exp_nonpositive(-INFINITY), 0.0);
}

TEST(random_numbers_are_those_of_splitmix64) {
    // The first outputs of the published generator for the seed 1234567.
    Random random(1234567);
    CHECK_EQUAL(random.next(), uint64_t{6457827717110365317u});
    CHECK_EQUAL(random.next(), uint64_t{3203168211198807973u});
    CHECK_EQUAL(random.next(), uint64_t{9817491932198370423u});
    double least = 1, most = 0;
    for (int i = 0; i < 10000; ++i) {
        const double unit = random.next_unit();
        least = std::min(least, unit);
        most = std::max(most, unit);
    }
    CHECK(least >= 0 && least < 0.01 && most < 1 && most > 0.99);
}

TEST(a_draw_can_be_done_again) {
    Sampler straight(plain()), sought(plain());
    const auto draw = [](Sampler& sampler) {
        return sampler.sample(kLogits.data(), kLogits.size(), nullptr, 0);
    };
    std::vector<uint32_t> tokens(50);
    for (uint32_t& token : tokens) token = draw(straight);
    for (size_t i = tokens.size(); i-- > 0;) {
        sought.seek(i);
        CHECK_EQUAL(draw(sought), tokens[i]);
        sought.seek(i);
        CHECK_EQUAL(draw(sought), tokens[i]);
    }
}

TEST(greedy_takes_the_lowest_of_equals) {
    awqe_sampling options = plain();
    options.temperature = 0;
    Sampler sampler(options);
    const std::vector<float> logits = {-1, 3, 2, 3, 3};
    CHECK_EQUAL(sampler.sample(logits.data(), logits.size(), nullptr, 0), 1u);
    const std::vector<float> equal(9, -5.0f);
    CHECK_EQUAL(sampler.sample(equal.data(), equal.size(), nullptr, 0), 0u);
}

TEST(plain_sampling_follows_the_probabilities) {
    check_shares(shares(plain(), kLogits),
                 {{1, 8 / 15.}, {3, 4 / 15.}, {0, 2 / 15.}, {2, 1 / 15.}});
}

TEST(temperature_sharpens) {
    awqe_sampling options = plain();
    options.temperature = 0.5f;  // squares the odds
    check_shares(shares(options, kLogits),
                 {{1, 64 / 85.}, {3, 16 / 85.}, {0, 4 / 85.}, {2, 1 / 85.}});
}

TEST(top_k_keeps_the_likeliest) {
    awqe_sampling options = plain();
    options.top_k = 2;
    check_shares(shares(options, kLogits), {{1, 2 / 3.}, {3, 1 / 3.}});
    options.top_k = 1;
    check_shares(shares(options, {1, 5, 5, 1}), {{1, 1.0}});  // a tie: the lower token
    options.top_k = 100;
    CHECK_EQUAL(shares(options, kLogits).size(), size_t{4});
}

TEST(top_p_keeps_the_smallest_set_that_reaches_it) {
    awqe_sampling options = plain();
    options.top_p = 0.75f;  // 8/15 falls short, 12/15 reaches it
    check_shares(shares(options, kLogits), {{1, 2 / 3.}, {3, 1 / 3.}});
    options.top_p = 0.5f;
    check_shares(shares(options, kLogits), {{1, 1.0}});
    options.top_p = 1e-6f;
    check_shares(shares(options, kLogits), {{1, 1.0}});
    options.top_p = 0.99f;
    CHECK_EQUAL(shares(options, kLogits).size(), size_t{4});
}

TEST(top_p_counts_what_top_k_left) {
    awqe_sampling options = plain();
    options.top_k = 2;
    options.top_p = 0.6f;  // of the two, the first alone has 2/3
    check_shares(shares(options, kLogits), {{1, 1.0}});
}

TEST(min_p_drops_what_is_unlikely_beside_the_likeliest) {
    awqe_sampling options = plain();
    options.min_p = 0.3f;
    check_shares(shares(options, kLogits), {{1, 2 / 3.}, {3, 1 / 3.}});
    options.min_p = 1;
    check_shares(shares(options, kLogits), {{1, 1.0}});
}

TEST(repetition_penalty_counts_a_token_once_and_knows_its_window) {
    awqe_sampling options = plain();
    options.temperature = 0;
    options.repetition_penalty = 2;
    const auto greedy = [&](const std::vector<float>& logits,
                            const std::vector<uint32_t>& context) {
        return Sampler(options).sample(logits.data(), logits.size(), context.data(),
                                       context.size());
    };
    CHECK_EQUAL(greedy({4, 3, 1}, {}), 0u);
    CHECK_EQUAL(greedy({4, 3, 1}, {0}), 1u);           // 4 / 2 < 3
    CHECK_EQUAL(greedy({4, 1.5f, 1}, {0, 0, 0}), 0u);  // once: 2, not 0.5
    CHECK_EQUAL(greedy({-1, -3, -1.5f}, {0}), 2u);     // -1 * 2 < -1.5
    options.repetition_window = 2;
    CHECK_EQUAL(greedy({4, 3, 1}, {0, 2, 2}), 0u);  // outside the window
    CHECK_EQUAL(greedy({4, 3, 1}, {2, 0, 2}), 1u);
}

TEST(seeds_reproduce) {
    awqe_sampling options = plain();
    options.top_k = 50;
    options.top_p = 0.95f;
    options.min_p = 0.01f;
    options.temperature = 0.8f;
    std::vector<float> logits(500);
    for (size_t i = 0; i < logits.size(); ++i)
        logits[i] = static_cast<float>(i * 7919 % 1000) * 0.008f;
    Sampler first(options), second(options);
    options.seed = 8;
    Sampler third(options);
    uint64_t hash = 0xCBF29CE484222325u;
    int differing = 0;
    for (int i = 0; i < 200; ++i) {
        const uint32_t token = first.sample(logits.data(), logits.size(), nullptr, 0);
        CHECK_EQUAL(second.sample(logits.data(), logits.size(), nullptr, 0), token);
        if (third.sample(logits.data(), logits.size(), nullptr, 0) != token) ++differing;
        hash = (hash ^ token) * 0x100000001B3u;
    }
    CHECK(differing > 100);
    CHECK_EQUAL(
        hash, uint64_t{5489949531063322003u});  // the same on every CPU and under every C++ library
}

TEST(senseless_options_are_named) {
    const auto refused = [](auto change, const std::string& field) {
        awqe_sampling options = plain();
        change(options);
        try {
            const Sampler sampler(options);
        } catch (const Failure& failure) {
            CHECK_EQUAL(failure.status(), AWQE_INVALID_ARGUMENT);
            CHECK(std::string(failure.what()).find("sampling: " + field + " is ") == 0);
            return;
        }
        fail(__FILE__, __LINE__, "accepted a senseless " + field);
    };
    const float nan = std::nanf("");
    for (float bad : {-0.1f, nan, INFINITY})
        refused([&](auto& o) { o.temperature = bad; }, "temperature");
    for (float bad : {0.0f, 1.1f, nan}) refused([&](auto& o) { o.top_p = bad; }, "top_p");
    for (float bad : {-0.1f, 1.1f, nan}) refused([&](auto& o) { o.min_p = bad; }, "min_p");
    for (float bad : {0.0f, -1.0f, nan, INFINITY}) {
        refused([&](auto& o) { o.repetition_penalty = bad; }, "repetition_penalty");
    }
}

TEST(what_is_added_moves_and_excludes_tokens) {
    const float add_nothing[] = {0, 0, 0, 0};
    const float add_to_first[] = {100, 0, 0, 0};
    const float exclude_best[] = {0, -INFINITY, 0, 0};
    awqe_sampling greedy = plain();
    greedy.temperature = 0;
    const auto draw = [](const awqe_sampling& options, const float* added) {
        return Sampler(options).sample(kLogits.data(), kLogits.size(), nullptr, 0, added);
    };
    CHECK_EQUAL(draw(greedy, add_nothing), 1u);
    CHECK_EQUAL(draw(greedy, add_to_first), 0u);
    CHECK_EQUAL(draw(greedy, exclude_best), 3u);
    for (uint64_t seed = 0; seed < 100; ++seed) {
        awqe_sampling options = plain();
        options.seed = seed;
        CHECK_EQUAL(draw(options, add_nothing), draw(options, nullptr));
        CHECK(draw(options, exclude_best) != 1u);
        options.top_k = 1;
        CHECK_EQUAL(draw(options, exclude_best), 3u);
    }
    const auto refused = [&](const float* added, const char* words) {
        try {
            draw(greedy, added);
        } catch (const Failure& failure) {
            CHECK_EQUAL(failure.status(), AWQE_INVALID_ARGUMENT);
            CHECK(std::string(failure.what()).find(words) != std::string::npos);
            return;
        }
        fail(__FILE__, __LINE__, "sampled with what cannot be added");
    };
    const float none[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    const float no_number[] = {0, std::nanf(""), 0, 0};
    const float infinite[] = {0, 0, INFINITY, 0};
    refused(none, "every token");
    refused(no_number, "added[1]");
    refused(infinite, "added[2]");
}

TEST(logits_of_damaged_weights_are_refused) {
    Sampler sampler(plain());
    for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
        const float logits[] = {1, bad, 2};
        try {
            sampler.sample(logits, 3, nullptr, 0);
        } catch (const Failure& failure) {
            CHECK_EQUAL(failure.status(), AWQE_FILE_INVALID);
            CHECK(std::string(failure.what()).find("token 1 is not finite") != std::string::npos);
            continue;
        }
        fail(__FILE__, __LINE__, "sampled from a logit that is not finite");
    }
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
