// A mixture of experts in the place of a layer's feed-forward; step.h says what the letters mean.
//
//   stream += sum over chosen experts e, ascending, of  weight_e * (W_down,e activated_e)
//                                          + weight_s * (W_down,s activated_s)     the shared one
//
// Each row of the block chooses for itself and gets the bits that it would get alone. Rows that go
// to one expert are computed together, so that its weights are read once for the block; experts
// that nobody chose are not touched.
#include "native/runtime/experts.h"

#include <algorithm>

#include "native/runtime/step.h"

namespace awqe {
namespace {

// Where the rows of the block go.
struct Routed {
    const Visit* visits;  // [count], ascending experts
    size_t count;
    const uint32_t* row;         // [m * c]
    const float* weight;         // [m * c]
    const float* shared_weight;  // [m]
    QuantizedRows input;         // [m * c, hidden] if apart, otherwise the block's [m, hidden]
    bool apart;                  // chosen rows have been put beside each other

    size_t chosen() const { return count == 0 ? 0 : visits[count - 1].end; }
};

// Rows [first, ...) of some.
QuantizedRows from_row(const QuantizedRows& rows, size_t first) {
    return {rows.codes + first * rows.code_stride, rows.scales + first * rows.group_stride,
            rows.sums + first * rows.group_stride, rows.code_stride, rows.group_stride};
}

// y[t][n] = W x[t] for `count` rows and the blocks of rows [first_block, end_block).
void multiply_rows(const Step& step, const PackedMatrix& w, const QuantizedRows& x, size_t count,
                   float* y, size_t y_stride, size_t first_block, size_t end_block) {
    const size_t begin = first_block * kBlockRows;
    const size_t end = std::min<size_t>(end_block * kBlockRows, w.rows);
    if (count == 1) {
        step.kernels.gemv[w.bits](&w, &x, y, begin, end);
    } else {
        step.kernels.gemm[w.bits](&w, &x, count, y, y_stride, begin, end);
    }
}

RoutingRule rule_of(const Architecture& a) {
    return {a.routing, a.experts, a.experts_per_token, a.router_epsilon};
}

// Logits of the experts [begin, end); behind the last one stands the shared expert's.
void route_part(const Step& step, const Experts& w, const float* normed, size_t begin, size_t end,
                float* logits) {
    const size_t experts = step.a.experts;
    const size_t hidden = step.a.hidden_size;
    if (begin < experts) {
        step.kernels.router(normed, w.router, hidden, begin, std::min(end, experts), logits);
    }
    if (end > experts && w.shared_router != nullptr) {
        step.kernels.router(normed, w.shared_router, hidden, 0, 1, logits + experts);
    }
}

void choose(const Step& step, const Experts& w, const float* logits, Choice* choices,
            float* shared_weight_out) {
    const size_t experts = step.a.experts;
    float* const scratch = step.buffers.experts.scratch + step.team.index() * experts;
    choose_experts(rule_of(step.a), step.kernels.softmax, logits, scratch, choices);
    *shared_weight_out =
        w.shared_router == nullptr ? 1.0f : shared_weight(step.kernels.softmax, logits[experts]);
}

// One row: its logits are shared out, everything else every member does for itself. Each member's
// own part of the arrays is as good as the others'.
Routed route_row(const Step& step, const LayerWeights& layer) {
    const ExpertActivations& at = step.buffers.experts;
    const Experts& w = layer.experts;
    const size_t hidden = step.a.hidden_size;
    const size_t count = step.a.experts_per_token;
    float* const normed = step.buffers.normed + step.team.index() * step.buffers.normed_stride;
    normalise(step, layer.feed_forward_norm, step.residual(0), hidden, normed);
    const QuantizedRows x =
        rows_of(step.own_input, step.team.index(), hidden, w.all[0].gate.weight.group_size);
    step.kernels.quantize_act(normed, hidden, w.all[0].gate.weight.group_size, &x, 0);
    constexpr size_t kAtOnce = 4;  // experts that the kernel computes together
    step.team.share(step.a.experts + 1, kAtOnce, [&](size_t begin, size_t end) {
        route_part(step, w, normed, begin, end, at.logits);
    });
    const OwnRoute own = at.own_route(step.team.index());
    choose(step, w, at.logits, own.choices, own.shared_weight);
    for (uint32_t i = 0; i < count; ++i) {
        own.visits[i] = {own.choices[i].expert, i, i + 1};
        own.row[i] = 0;
        own.weight[i] = own.choices[i].weight;
    }
    return {own.visits, count, own.row, own.weight, own.shared_weight, x, false};
}

// Sorts the rows' choices by expert: a walk in the block's order for each one's count, one for its
// rows.
void group_by_expert(const Step& step) {
    const ExpertActivations& at = step.buffers.experts;
    const size_t each = step.a.experts_per_token;
    const size_t total = step.m * each;
    uint32_t* const next = at.next_row;  // [experts]
    std::fill_n(next, step.a.experts, 0u);
    for (size_t i = 0; i < total; ++i) ++next[at.choices[i].expert];
    uint32_t visits = 0;
    uint32_t first = 0;
    for (uint32_t e = 0; e < step.a.experts; ++e) {
        const uint32_t rows = next[e];
        next[e] = first;
        if (rows > 0) at.visits[visits++] = {e, first, first + rows};
        first += rows;
    }
    *at.visit_count = visits;
    for (size_t i = 0; i < total; ++i) {
        const Choice& choice = at.choices[i];
        const uint32_t place = next[choice.expert]++;
        at.chosen_row[place] = static_cast<uint32_t>(i / each);
        at.chosen_weight[place] = choice.weight;
    }
}

void copy_row(const QuantizedRows& from, size_t source, const QuantizedRows& to, size_t target) {
    std::copy_n(from.codes + source * from.code_stride, from.code_stride,
                to.codes + target * to.code_stride);
    std::copy_n(from.scales + source * from.group_stride, from.group_stride,
                to.scales + target * to.group_stride);
    std::copy_n(from.sums + source * from.group_stride, from.group_stride,
                to.sums + target * to.group_stride);
}

Routed route_block(const Step& step, const LayerWeights& layer) {
    const ExpertActivations& at = step.buffers.experts;
    const Experts& w = layer.experts;
    const size_t hidden = step.a.hidden_size;
    const size_t experts = step.a.experts;
    const size_t count = step.a.experts_per_token;
    const size_t g = w.all[0].gate.weight.group_size;
    const size_t own = step.team.index();
    float* const normed = step.buffers.normed + own * step.buffers.normed_stride;
    float* const logits = at.own_logits + own * (experts + 1);
    const QuantizedRows x = rows_of(step.block_input, 0, hidden, g);
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            normalise(step, layer.feed_forward_norm, step.residual(t), hidden, normed);
            step.kernels.quantize_act(normed, hidden, g, &x, t);
            route_part(step, w, normed, 0, experts + 1, logits);
            choose(step, w, logits, at.choices + t * count, at.shared_weight + t);
        }
    });
    step.team.share(1, 1, [&](size_t, size_t) { group_by_expert(step); });
    const QuantizedRows chosen = rows_of(at.chosen_input, 0, hidden, g);
    step.team.share(step.m * count, 8, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) copy_row(x, at.chosen_row[i], chosen, i);
    });
    return {at.visits,        *at.visit_count, at.chosen_row, at.chosen_weight,
            at.shared_weight, chosen,          true};
}

// gate[t] = act(W_gate x[t]) * W_up x[t] for `count` rows. gate, up: float [count, width]
void activate(const Step& step, const FeedForward& w, const QuantizedRows& x, size_t count,
              float* gate, float* up, size_t first_block, size_t end_block) {
    const size_t width = w.up.weight.rows;
    const ActivationFunction function = step.kernels.activation[step.a.activation];
    multiply_rows(step, w.gate.weight, x, count, gate, width, first_block, end_block);
    multiply_rows(step, w.up.weight, x, count, up, width, first_block, end_block);
    const size_t first = first_block * kBlockRows;
    const size_t values = std::min<size_t>(end_block * kBlockRows, width) - first;
    for (size_t t = 0; t < count; ++t) {
        float* const out = gate + t * width + first;
        function(out, up + t * width + first, values, out);
    }
}

// What the second matrices read, in floats: of all chosen experts and of the shared one, whose
// blocks of rows follow each other.
void activate_all(const Step& step, const Experts& w, const Routed& routed,
                  const QuantizedRows& block_input) {
    const ExpertActivations& at = step.buffers.experts;
    const size_t width = step.a.expert_size;
    const size_t each = blocks_of(w.all[0].up.weight);
    const size_t chosen = routed.count * each;
    const size_t shared = w.has_shared() ? blocks_of(w.shared.up.weight) : 0;
    step.team.share(chosen + shared, grain_of(step), [&](size_t begin, size_t end) {
        while (begin < std::min(end, chosen)) {
            const Visit& visit = routed.visits[begin / each];
            const size_t first = begin % each;
            const size_t last = std::min(each, first + end - begin);
            const QuantizedRows x =
                routed.apart ? from_row(routed.input, visit.begin) : routed.input;
            activate(step, w.all[visit.expert], x, visit.end - visit.begin,
                     at.gate + visit.begin * width, at.up + visit.begin * width, first, last);
            begin += last - first;
        }
        if (begin < end) {
            activate(step, w.shared, block_input, step.m, at.shared_gate, at.shared_up,
                     begin - chosen, end - chosen);
        }
    });
}

// The same as int8.
struct Activated {
    QuantizedRows chosen;  // [m * c, expert_size]
    QuantizedRows shared;  // [m, shared_expert_size]
};

Activated quantize_all(const Step& step, const Experts& w, const Routed& routed) {
    const ExpertActivations& at = step.buffers.experts;
    const Architecture& a = step.a;
    const size_t width = a.expert_size;
    const size_t own = step.team.index();
    const size_t g = w.all[0].down.weight.group_size;
    const size_t shared_width = w.shared.up.weight.rows;
    const size_t shared_g = w.has_shared() ? w.shared.down.weight.group_size : 1;
    const bool alone = step.m == 1;
    const Activated out = {alone ? rows_of(at.own_activated, own * a.experts_per_token, width, g)
                                 : rows_of(at.activated, 0, width, g),
                           alone ? rows_of(step.own_input, own, shared_width, shared_g)
                                 : rows_of(step.block_input, 0, shared_width, shared_g)};
    const size_t chosen = routed.chosen();
    const auto quantize_rows = [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            if (i < chosen) {
                step.kernels.quantize_act(at.gate + i * width, width, g, &out.chosen, i);
            } else {
                step.kernels.quantize_act(at.shared_gate + (i - chosen) * shared_width,
                                          shared_width, shared_g, &out.shared, i - chosen);
            }
        }
    };
    const size_t total = chosen + (w.has_shared() ? step.m : 0);
    if (alone) {
        quantize_rows(0, total);
    } else {
        step.team.share(total, 1, quantize_rows);
    }
    return out;
}

// stream += the weighted sum. Whoever computes outputs of the second matrices does so for all
// experts, in ascending order.
void add_mixture(const Step& step, const Experts& w, const Routed& routed, const Activated& x) {
    const size_t hidden = step.a.hidden_size;
    float* const projected = step.projected(0);
    float* const mixed = step.buffers.experts.mixed;
    step.team.share(blocks_of(w.all[0].down.weight), grain_of(step), [&](size_t begin, size_t end) {
        const size_t first = begin * kBlockRows;
        const size_t count = std::min<size_t>(end * kBlockRows, hidden) - first;
        // mixed[t] += weight * projected[i], two roundings
        const auto add = [&](size_t t, float weight, size_t i) {
            float* const sum = mixed + t * hidden + first;
            const float* const part = projected + i * hidden + first;
            for (size_t n = 0; n < count; ++n) sum[n] += weight * part[n];
        };
        for (size_t t = 0; t < step.m; ++t) std::fill_n(mixed + t * hidden + first, count, 0.0f);
        for (size_t v = 0; v < routed.count; ++v) {
            const Visit& visit = routed.visits[v];
            multiply_rows(step, w.all[visit.expert].down.weight, from_row(x.chosen, visit.begin),
                          visit.end - visit.begin, projected, hidden, begin, end);
            for (size_t i = visit.begin; i < visit.end; ++i) {
                add(routed.row[i], routed.weight[i], i - visit.begin);
            }
        }
        if (w.has_shared()) {
            multiply_rows(step, w.shared.down.weight, x.shared, step.m, projected, hidden, begin,
                          end);
            for (size_t t = 0; t < step.m; ++t) add(t, routed.shared_weight[t], t);
        }
        for (size_t t = 0; t < step.m; ++t) {
            float* const residual = step.residual(t) + first;
            const float* const sum = mixed + t * hidden + first;
            for (size_t n = 0; n < count; ++n) residual[n] += sum[n];
        }
    });
}

}  // namespace

void mixture_of_experts(const Step& step, const LayerWeights& layer) {
    const Experts& w = layer.experts;
    const Routed routed = step.m == 1 ? route_row(step, layer) : route_block(step, layer);
    const QuantizedRows block_input =
        routed.apart
            ? rows_of(step.block_input, 0, step.a.hidden_size, w.all[0].gate.weight.group_size)
            : routed.input;
    activate_all(step, w, routed, block_input);
    add_mixture(step, w, routed, quantize_all(step, w, routed));
}

// ---- memory -------------------------------------------------------------------------------------

OwnRoute ExpertActivations::own_route(size_t thread) const {
    const size_t first = thread * own_stride_;
    return {own_choices_ + first, own_visits_ + first, own_row_ + first, own_weight_ + first,
            own_shared_weight_ + first};
}

ExpertActivations::ExpertActivations(const Model& model, size_t rows, unsigned threads,
                                     Arena& arena) {
    const Architecture& a = model.architecture();
    if (a.experts == 0) return;
    size_t input_groups = 0;
    size_t activated_groups = 0;
    for (const LayerWeights& w : model.layers()) {
        for (const FeedForward& expert : w.experts.all) {
            input_groups = std::max<size_t>(input_groups, expert.gate.weight.groups);
            activated_groups = std::max<size_t>(activated_groups, expert.down.weight.groups);
        }
    }
    const size_t each = a.experts_per_token;
    logits = arena.take<float>(a.experts + 1);
    own_logits = arena.take<float>(threads * (a.experts + 1));
    scratch = arena.take<float>(threads * a.experts);
    choices = arena.take<Choice>(rows * each);
    shared_weight = arena.take<float>(rows);
    visits = arena.take<Visit>(a.experts);
    visit_count = arena.take<uint32_t>(1);
    next_row = arena.take<uint32_t>(a.experts);
    chosen_row = arena.take<uint32_t>(rows * each);
    chosen_weight = arena.take<float>(rows * each);
    chosen_input = take_rows(arena, rows * each, a.hidden_size, input_groups);
    gate = arena.take<float>(rows * each * a.expert_size);
    up = arena.take<float>(rows * each * a.expert_size);
    activated = take_rows(arena, rows * each, a.expert_size, activated_groups);
    own_activated = take_rows(arena, threads * each, a.expert_size, activated_groups);
    shared_gate = arena.take<float>(rows * a.shared_expert_size);
    shared_up = arena.take<float>(rows * a.shared_expert_size);
    mixed = arena.take<float>(rows * a.hidden_size);
    own_stride_ = round_up(each, 16);
    own_choices_ = arena.take<Choice>(threads * own_stride_);
    own_visits_ = arena.take<Visit>(threads * own_stride_);
    own_row_ = arena.take<uint32_t>(threads * own_stride_);
    own_weight_ = arena.take<float>(threads * own_stride_);
    own_shared_weight_ = arena.take<float>(threads * own_stride_);
}

}  // namespace awqe
