// Drawing a token from logits, exactly as awq_edge.h orders it: repetition penalty, temperature,
// top-k, top-p, min-p. Uses + - * / on IEEE doubles in a fixed order and its own exponential, so
// that equal logits and seeds give equal tokens on every CPU and under every C++ library. Owns the
// random state and a table of candidates; appends nothing to any context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "awq_edge.h"

namespace awqe {

// e to the power x, x <= 0, relative error below 1e-15; 0 below -708.
double exp_nonpositive(double x);

// Throws Failure with AWQE_FILE_INVALID: only damaged weights give such a logit.
[[noreturn]] void fail_not_finite(size_t token);

// SplitMix64: a counter in steps of the odd constant 0x9E3779B97F4A7C15, beginning at the seed,
// through a mixing function. Every 64-bit state is a good one, so any seed is.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    // The stream of `seed` from its number `index` on, counted from 0.
    Random(uint64_t seed, uint64_t index) : state_(seed + index * kStep) {}
    uint64_t next();
    double next_unit();  // [0, 1): the upper 53 bits of next()

  private:
    static constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
    uint64_t state_;
};

class Sampler {
  public:
    // Throws Failure with AWQE_INVALID_ARGUMENT naming the field that makes no sense.
    explicit Sampler(const awqe_sampling& options);

    // logits: [vocabulary]; context: [count], the tokens so far; added: [vocabulary] or NULL, what
    // a caller adds to each logit, minus infinity to exclude a token. Consumes one random number
    // unless greedy. Throws Failure with AWQE_FILE_INVALID if a logit is not finite: only damaged
    // weights give one; with AWQE_INVALID_ARGUMENT if `added` leaves no token.
    uint32_t sample(const float* logits, size_t vocabulary, const uint32_t* context, size_t count,
                    const float* added = nullptr);

    // Whether it draws the likeliest token of logits as they are: the lowest id of equal ones.
    bool takes_likeliest() const {
        return options_.temperature == 0 && options_.repetition_penalty == 1;
    }

    // The next draw uses this number of the random stream, counted from 0.
    void seek(uint64_t draw) { random_ = Random(options_.seed, draw); }

  private:
    struct Candidate {
        double weight;  // a logit, then the probability relative to the likeliest token's
        uint32_t token;
    };
    static bool likelier(const Candidate& a, const Candidate& b);

    void gather(const float* logits, size_t vocabulary, const uint32_t* context, size_t count);
    void adjust(const float* added);
    uint32_t likeliest() const;
    void keep_top_k();
    void weigh();
    void keep_top_p();
    void keep_min_p();
    uint32_t draw();

    awqe_sampling options_;
    Random random_;
    std::vector<Candidate> candidates_;
};

}  // namespace awqe
