// The choice of experts; see choose_experts.h. Few numbers and no sum over many: plain code, whose
// float operations are the same on every CPU.
#include "native/kernels/router/choose_experts.h"

#include <math.h>

namespace awqe {
namespace {

// Whether the expert is among the first `count` choices.
bool is_chosen(const Choice* chosen, uint32_t count, uint32_t expert) {
    for (uint32_t i = 0; i < count; ++i) {
        if (chosen[i].expert == expert) return true;
    }
    return false;
}

// The first of the largest; comparisons alone, so that NaN gives an expert too. skip(e): whether an
// expert is left out; not all are.
template <class Skip>
uint32_t first_largest(const float* values, uint32_t experts, const Skip& skip) {
    uint32_t best = experts;
    for (uint32_t e = 0; e < experts; ++e) {
        if (skip(e)) continue;
        if (best == experts || values[e] > values[best]) best = e;
    }
    return best;
}

void sort_by_expert(Choice* chosen, uint32_t count) {
    for (uint32_t i = 1; i < count; ++i) {
        const Choice moved = chosen[i];
        uint32_t at = i;
        for (; at > 0 && chosen[at - 1].expert > moved.expert; --at) chosen[at] = chosen[at - 1];
        chosen[at] = moved;
    }
}

void choose_sparsely(const RoutingRule& rule, SoftmaxFunction softmax, const float* logits,
                     float* scratch, Choice* chosen) {
    const float limit = 2.0f * rule.epsilon;
    for (uint32_t i = 0; i < rule.count; ++i) {
        const uint32_t best = first_largest(logits, rule.experts,
                                            [&](uint32_t e) { return is_chosen(chosen, i, e); });
        const float most = logits[best];
        // The logits that come near the largest, one after the other.
        uint32_t kept = 0;
        uint32_t own = 0;
        for (uint32_t e = 0; e < rule.experts; ++e) {
            if (is_chosen(chosen, i, e)) continue;
            const float magnitude = fabsf(logits[e]);
            const float divisor = magnitude < most ? most : magnitude;
            if ((most - logits[e]) / divisor > limit) continue;  // NaN stays
            if (e == best) own = kept;
            scratch[kept++] = logits[e];
        }
        softmax(scratch, kept, scratch);
        chosen[i] = {best, scratch[own]};
    }
}

}  // namespace

void choose_experts(const RoutingRule& rule, SoftmaxFunction softmax, const float* logits,
                    float* scratch, Choice* chosen) {
    if (rule.routing == Routing::kSparsemixer) {
        choose_sparsely(rule, softmax, logits, scratch, chosen);
        sort_by_expert(chosen, rule.count);
        return;
    }
    softmax(logits, rule.experts, scratch);
    for (uint32_t i = 0; i < rule.count; ++i) {
        const uint32_t best =
            first_largest(scratch, rule.experts, [&](uint32_t e) { return scratch[e] < 0.0f; });
        chosen[i] = {best, scratch[best]};
        scratch[best] = -1.0f;  // no probability is negative: taken
    }
    sort_by_expert(chosen, rule.count);
    if (rule.routing != Routing::kSoftmaxRenormalised) return;
    float total = chosen[0].weight;
    for (uint32_t i = 1; i < rule.count; ++i) total += chosen[i].weight;
    for (uint32_t i = 0; i < rule.count; ++i) chosen[i].weight /= total;
}

float shared_weight(SoftmaxFunction softmax, float logit) {
    float pair[2] = {logit, 0.0f};
    softmax(pair, 2, pair);
    return pair[0];
}

}  // namespace awqe
