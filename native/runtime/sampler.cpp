// The steps of sampling, in their order; see sampler.h.
#include "native/runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "native/failure/failure.h"

namespace awqe {

double exp_nonpositive(double x) {
    if (!(x >= -708.0)) return 0.0;  // below, the result would not be a normal number
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough for n times it
    // to be exact.
    const int n = static_cast<int>(x * 1.4426950408889634 - 0.5);
    const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    // The Taylor series to r^13 / 13!; the next term is below 2e-17.
    double sum = 1.0;
    for (int i = 13; i >= 1; --i) sum = 1.0 + sum * r / i;
    return sum * std::bit_cast<double>(static_cast<uint64_t>(1023 + n) << 52);
}

void fail_not_finite(size_t token) {
    fail(AWQE_FILE_INVALID,
         "the logit of token %zu is not finite: the model file is damaged, check it with awq-edge "
         "inspect --verify",
         token);
}

uint64_t Random::next() {
    state_ += kStep;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double Random::next_unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

Sampler::Sampler(const awqe_sampling& options) : options_(options), random_(options.seed) {
    const auto need = [](bool legal, const char* field, float value, const char* allowed) {
        if (!legal) {
            fail(AWQE_INVALID_ARGUMENT, "sampling: %s is %g, allowed is %s", field,
                 static_cast<double>(value), allowed);
        }
    };
    const awqe_sampling& o = options_;
    need(std::isfinite(o.temperature) && o.temperature >= 0, "temperature", o.temperature,
         "0 or more");
    need(o.top_p > 0 && o.top_p <= 1, "top_p", o.top_p, "more than 0, at most 1");
    need(o.min_p >= 0 && o.min_p <= 1, "min_p", o.min_p, "0 to 1");
    need(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0, "repetition_penalty",
         o.repetition_penalty, "more than 0");
}

uint32_t Sampler::sample(const float* logits, size_t vocabulary, const uint32_t* context,
                         size_t count, const float* added) {
    gather(logits, vocabulary, context, count);
    if (added != nullptr) adjust(added);
    if (options_.temperature == 0) return likeliest();
    keep_top_k();
    weigh();
    keep_top_p();
    keep_min_p();
    return draw();
}

// A total order: equal logits are ordered by token.
bool Sampler::likelier(const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// Every token with its logit, penalised if it is a recent one.
void Sampler::gather(const float* logits, size_t vocabulary, const uint32_t* context,
                     size_t count) {
    candidates_.resize(vocabulary);
    for (size_t i = 0; i < vocabulary; ++i) {
        if (!std::isfinite(logits[i])) fail_not_finite(i);
        candidates_[i] = {double{logits[i]}, static_cast<uint32_t>(i)};
    }
    if (options_.repetition_penalty == 1) return;
    const size_t window = options_.repetition_window;
    const double penalty = double{options_.repetition_penalty};
    for (size_t i = window == 0 || window > count ? 0 : count - window; i < count; ++i) {
        if (context[i] >= vocabulary) continue;  // an embedding, which is no token
        // From the logit itself, so that a token which occurs twice is penalised once.
        const double logit = double{logits[context[i]]};
        candidates_[context[i]].weight = logit > 0 ? logit / penalty : logit * penalty;
    }
}

// Adds what the caller adds; every token is still at its own place.
void Sampler::adjust(const float* added) {
    for (Candidate& c : candidates_) {
        const float change = added[c.token];
        if (!std::isfinite(change) && change != -INFINITY) {
            fail(AWQE_INVALID_ARGUMENT,
                 "added[%zu] is %g: use a finite number, or minus infinity to exclude the token",
                 size_t{c.token}, static_cast<double>(change));
        }
        c.weight += double{change};
    }
    std::erase_if(candidates_, [](const Candidate& c) { return c.weight == -HUGE_VAL; });
    if (candidates_.empty()) fail(AWQE_INVALID_ARGUMENT, "added excludes every token");
}

uint32_t Sampler::likeliest() const {
    return std::min_element(candidates_.begin(), candidates_.end(), likelier)->token;
}

// Leaves the k likeliest candidates in order of likelihood.
void Sampler::keep_top_k() {
    if (options_.top_k == 0 || options_.top_k >= candidates_.size()) return;
    const auto end = candidates_.begin() + options_.top_k;
    std::nth_element(candidates_.begin(), end, candidates_.end(), likelier);
    candidates_.erase(end, candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), likelier);
}

// Turns logits into probabilities relative to the likeliest token's, so that nothing overflows.
// Temperature comes in here; it does not change the order, so top-k before it keeps the same
// tokens.
void Sampler::weigh() {
    const double top = std::min_element(candidates_.begin(), candidates_.end(), likelier)->weight;
    const double temperature = double{options_.temperature};
    for (Candidate& c : candidates_) c.weight = exp_nonpositive((c.weight - top) / temperature);
}

// Leaves the shortest beginning, in order of likelihood, that reaches the share top_p of the sum.
void Sampler::keep_top_p() {
    if (options_.top_p >= 1) return;
    double total = 0;
    for (const Candidate& c : candidates_) total += c.weight;
    // A heap gives the likeliest ones without ordering the thousands that will be dropped.
    const auto worse = [](const Candidate& a, const Candidate& b) { return likelier(b, a); };
    std::make_heap(candidates_.begin(), candidates_.end(), worse);
    auto heap_end = candidates_.end();
    for (double sum = 0; heap_end != candidates_.begin() && sum < total * double{options_.top_p};) {
        std::pop_heap(candidates_.begin(), heap_end, worse);
        --heap_end;
        sum += heap_end->weight;
    }
    // The popped ones stand at the end, the likeliest last.
    std::reverse(candidates_.begin(), candidates_.end());
    candidates_.resize(static_cast<size_t>(candidates_.end() - heap_end));
}

void Sampler::keep_min_p() {
    const double least = double{options_.min_p};  // the likeliest weight is 1
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < least; });
}

// The first candidate at which the running sum passes a random share of the whole sum.
uint32_t Sampler::draw() {
    double total = 0;
    for (const Candidate& c : candidates_) total += c.weight;
    double rest = random_.next_unit() * total;
    for (const Candidate& c : candidates_) {
        if (rest < c.weight) return c.token;
        rest -= c.weight;
    }
    return likeliest();  // rounding used up the whole sum
}

}  // namespace awqe
