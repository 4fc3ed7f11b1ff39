// A mixture of experts in the place of a layer's feed-forward: runtime/experts.cpp's order of
// operations. The host chooses, by the CPU's own code, and starts each expert's products: it waits
// for the router once a layer, so such a step is not recorded.
#include <algorithm>
#include <vector>

#include "native/cuda/kernels/vector_types.h"
#include "native/cuda/step.h"
#include "native/cuda/step_parts.h"
#include "native/kernels/dispatch.h"
#include "native/kernels/router/choose_experts.h"

namespace awqe::cuda {
namespace {

constexpr size_t kExpertsPerCta = 16;  // of kernels/experts.cuh's router

// Rows of an expert: which of the choices are its own.
struct Visit {
    uint32_t expert;
    size_t begin;
    size_t count;
};

// Sorts the rows' choices by expert, those of one expert in the rows' order.
std::vector<Visit> group_by_expert(const std::vector<Choice>& choices, size_t each,
                                   uint32_t experts, unsigned* rows, float* weights) {
    std::vector<size_t> next(experts);
    for (const Choice& choice : choices) ++next[choice.expert];
    std::vector<Visit> visits;
    size_t first = 0;
    for (uint32_t e = 0; e < experts; ++e) {
        const size_t count = next[e];
        next[e] = first;
        if (count > 0) visits.push_back({e, first, count});
        first += count;
    }
    for (size_t i = 0; i < choices.size(); ++i) {
        const size_t place = next[choices[i].expert]++;
        rows[place] = static_cast<unsigned>(i / each);
        weights[place] = choices[i].weight;
    }
    return visits;
}

}  // namespace

void Step::mixture_of_experts(size_t m, size_t layer) {
    const Driver& d = device_->driver();
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const LayerAddresses& w = weights_.layers()[layer];
    const size_t hidden = a_.hidden_size;
    const size_t experts = a_.experts;
    const size_t each = a_.experts_per_token;
    const int width = static_cast<int>(hidden);
    const unsigned rows = static_cast<unsigned>(m);
    const auto address = [](const void* array) { return reinterpret_cast<Address>(array); };

    check(d.cuMemcpyDtoDAsync_v2(address(at.normed), address(at.residual),
                                 m * hidden * sizeof(float), stream_.get()),
          "read the stream");
    launches().norm(at.normed, nullptr, w.feed_forward_norm, m, hidden, kNormInPlace);
    launch((*kernels_)("route"), {divided(experts + 1, kExpertsPerCta), rows}, kThreads, 0,
           static_cast<const float*>(at.normed), w.router, w.shared_router, width,
           static_cast<int>(experts), at.router_logits);
    float* const logits = at.staged_router_logits.as<float>();
    check(d.cuMemcpyDtoHAsync_v2(logits, address(at.router_logits),
                                 m * (experts + 1) * sizeof(float), stream_.get()),
          "choose experts");
    check(d.cuStreamSynchronize(stream_.get()), "choose experts");

    size_t tables;
    const SoftmaxFunction softmax = kernel_tables(&tables)[tables - 1]->softmax;  // the reference
    const RoutingRule rule = {a_.routing, a_.experts, a_.experts_per_token, a_.router_epsilon};
    std::vector<Choice> choices(m * each);
    std::vector<float> scratch(experts);
    float* const shared = at.staged_shared_weights.as<float>();
    for (size_t t = 0; t < m; ++t) {
        const float* const own = logits + t * (experts + 1);
        choose_experts(rule, softmax, own, scratch.data(), choices.data() + t * each);
        shared[t] = w.shared_router == nullptr ? 1.0f : shared_weight(softmax, own[experts]);
    }
    const std::vector<Visit> visits =
        group_by_expert(choices, each, a_.experts, at.staged_choice_rows.as<unsigned>(),
                        at.staged_choice_weights.as<float>());
    const auto send = [&](const void* to, const PinnedBuffer& from, size_t bytes) {
        check(d.cuMemcpyHtoDAsync_v2(address(to), from.as<void>(), bytes, stream_.get()),
              "choose experts");
    };
    send(at.choices.rows, at.staged_choice_rows, choices.size() * sizeof(unsigned));
    send(at.choices.weights, at.staged_choice_weights, choices.size() * sizeof(float));
    send(at.shared_weights, at.staged_shared_weights, m * sizeof(float));
    check(d.cuMemsetD8Async(address(at.mixed), 0, m * hidden * sizeof(float), stream_.get()),
          "clear its memory");

    // mixed += weights * W_down (act(W_gate x) * W_up x); x: float [count, hidden]
    const auto add_expert = [&](const ExpertAddresses& expert, const float* x, size_t count,
                                const unsigned* whose, const float* weights) {
        const Source input = {
            activations(at.codes, at.side, hidden, expert.gate.group_size), x, {}};
        const Source activated =
            activate(expert.gate, expert.up, expert.down, nullptr, input, count);
        multiply({{&expert.down, at.branch}}, activated, count, false);
        launch((*kernels_)("add_weighted"),
               {divided(hidden, kThreads), static_cast<unsigned>(count)}, kThreads, 0,
               static_cast<const float*>(at.branch), whose, weights, width, at.mixed);
    };
    for (const Visit& visit : visits) {
        const unsigned* const whose = at.choices.rows + visit.begin;
        const float* x = at.normed;
        if (m > 1) {
            launch((*kernels_)("gather"), {static_cast<unsigned>(visit.count)}, kThreads, 0,
                   static_cast<const float*>(at.normed), whose, width, at.chosen);
            x = at.chosen;
        }
        add_expert(w.experts[visit.expert], x, visit.count, whose,
                   at.choices.weights + visit.begin);
    }
    if (w.shared.up.rows != 0) {
        add_expert(w.shared, at.normed, m, nullptr, at.shared_weights);
    }
    const size_t count = m * hidden;
    launch((*kernels_)("add"), {divided(count, kThreads)}, kThreads, 0, at.residual,
           static_cast<const float*>(at.mixed), static_cast<int>(count));
}

}  // namespace awqe::cuda
