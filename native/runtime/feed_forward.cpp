// The feed-forward of a layer; step.h says what the letters mean.
#include "native/runtime/step.h"

namespace awqe {
namespace {

// gate[t] = act(W_gate x) * W_up x, or act(W_up x) * activation_scales without a gate.
void activate(const Step& step, const FeedForward& w, const QuantizedRows& x) {
    const size_t width = step.a.feed_forward_size;
    const ActivationFunction function = step.kernels.activation[step.a.activation];
    const bool gated = step.a.gated;
    step.team.share(blocks_of(w.up.weight), grain_of(step), [&](size_t begin, size_t end) {
        if (gated) multiply(step, w.gate, x, step.gate(0), width, begin, end);
        multiply(step, w.up, x, step.up(0), width, begin, end);
        const size_t first = begin * kBlockRows;
        const size_t count = std::min<size_t>(end * kBlockRows, width) - first;
        const float* const scales = w.activation_scales;
        for (size_t t = 0; t < step.m; ++t) {
            const float* const up = step.up(t) + first;
            float* const out = step.gate(t) + first;
            if (gated) {
                function(out, up, count, out);
            } else {
                function(up, scales == nullptr ? nullptr : scales + first, count, out);
            }
        }
    });
}

}  // namespace

// The stream takes up W_down (act(W_gate x) * W_up x), x = norm(stream).
void feed_forward(const Step& step, const LayerWeights& layer) {
    const FeedForward& w = layer.feed_forward;
    const QuantizedRows x =
        read_stream(step, layer.feed_forward_norm, w.up.weight.group_size);  // int8 [m, hidden]
    activate(step, w, x);
    const QuantizedRows activated =
        quantize(step, step.a.feed_forward_size, w.down.weight.group_size,
                 [&](size_t t) { return step.gate(t); });  // int8 [m, feed_forward]
    add_to_stream(step, w.down, layer.feed_forward_post_norm, activated,
                  step.a.parallel ? step.waiting(0) : nullptr);
}

}  // namespace awqe
