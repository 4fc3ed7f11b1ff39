// Which experts a token goes to, and with which weights: from a router's logits, the one
// implementation for every CPU. Arithmetic: native/ARITHMETIC.md, section 10.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "native/kernels/router/softmax_f32.h"

namespace awqe {

// softmax: over all experts, the largest `count`. softmax_renormalised: the same, divided by their
// sum. sparsemixer: two choices, each weighed among those that come near it.
enum class Routing { kSoftmax, kSoftmaxRenormalised, kSparsemixer };

struct RoutingRule {
    Routing routing;
    uint32_t experts;  // of the layer
    uint32_t count;    // that are chosen, 1 ... experts; 2 for sparsemixer
    float epsilon;     // of sparsemixer
};

struct Choice {
    uint32_t expert;
    float weight;
};

// logits: float [experts]. scratch: float [experts], overwritten. chosen: [count], in ascending
// order of the experts. Of equal ones the first is chosen. If a logit is not finite, weights are
// NaN.
void choose_experts(const RoutingRule& rule, SoftmaxFunction softmax, const float* logits,
                    float* scratch, Choice* chosen);

// The share of a shared expert with a router of its own, 1 / (1 + exp(-logit)).
float shared_weight(SoftmaxFunction softmax, float logit);

}  // namespace awqe
