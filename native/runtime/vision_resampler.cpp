// A resampler behind a tower, and keys and values for gated blocks: in the place of a connector in
// a model whose decoder looks at pictures; see vision_tower.h. Orders of the operations:
// native/ARITHMETIC.md, section 11.
//
// The resampler's rows lie behind the tower's in the stream; what is seen are both, from the first
// row that the tower keeps.
#include <algorithm>

#include "native/runtime/vision_tower.h"

namespace awqe {
namespace {

// Calls body() for every strip of the rows [begin, end).
template <class Body>
void for_rows(VisionStep& step, size_t begin, size_t end, const Body& body) {
    constexpr size_t kRows = VisionActivations::kStripRows;
    for (step.first = begin; step.first < end; step.first += kRows) {
        step.m = std::min(end - step.first, kRows);
        body();
    }
}

// The rows of the resampler.
size_t own_begin(const VisionStep& step) { return step.rows(); }
size_t own_end(const VisionStep& step) { return step.rows() + step.a.resampler->rows; }
// Those that are seen.
size_t seen_rows(const VisionStep& step) { return own_end(step) - step.a.first_kept(); }

void layer_norm(const VisionStep& step, const Norm& norm, size_t n, const float* x, float* y) {
    step.kernels.layer_norm(x, norm.weight, norm.bias, n, step.a.resampler->norm_epsilon, y);
}

// The norm of a head, where there is one: float [head_size].
void normalise_head(const VisionStep& step, const Norm& norm, float* head) {
    if (norm.weight != nullptr) layer_norm(step, norm, step.a.resampler->head_size, head, head);
}

// The norm of the strip's stream: int8 [m, hidden]. tower_norm: of the tower's rows.
QuantizedRows read_stream(const VisionStep& step, const Norm& norm, size_t g,
                          const Norm& tower_norm) {
    return quantize(step, step.a.hidden_size, g, [&](size_t t) {
        float* const row = step.own_row();
        const bool own = step.first + t >= own_begin(step);
        layer_norm(step, own ? norm : tower_norm, step.a.hidden_size, step.residual(t), row);
        return row;
    });
}

void store_keys_and_values(const VisionStep& step, const VisionLayer& w) {
    const size_t rows = seen_rows(step);
    const size_t heads = step.a.resampler->heads;
    const size_t d = step.a.resampler->head_size;
    float* const keys = step.at.query;
    float* const values = step.at.attended;
    const QuantizedRows x =
        read_stream(step, w.attention_norm, w.key.weight.group_size, w.tower_norm);
    multiply_all(step, {{w.key, keys}, {w.value, values}}, x);
    step.team.share(step.m * heads, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t t = i / heads;
            const size_t from = (t * heads + i % heads) * d;
            const size_t to = (i % heads * rows + step.first - step.a.first_kept() + t) * d;
            normalise_head(step, w.key_norm, keys + from);
            step.kernels.store_half(keys + from, d, step.at.keys + to);
            step.kernels.store_half(values + from, d, step.at.values + to);
        }
    });
}

// attended[t] of head h = softmax(query . keys) . values, over all rows that are seen.
void attend_head(const VisionStep& step, const VisionLayer& w, size_t h, size_t t) {
    const size_t rows = seen_rows(step);
    const size_t d = step.a.resampler->head_size;
    const size_t at = t * step.a.resampler->query_size() + h * d;
    normalise_head(step, w.query_norm, step.at.query + at);
    const CacheF16 head = {step.at.keys + h * rows * d, step.at.values + h * rows * d, d,
                           rows};  // a ring that no position leaves
    step.kernels.attention_f16(step.at.query + at, 1, &head, d, 0, rows, nullptr,
                               step.at.attended + at);
}

void attention(const VisionStep& step, const VisionLayer& w) {
    const size_t k = step.a.resampler->query_size();
    const QuantizedRows x = read_stream(step, w.attention_norm, w.query.weight.group_size, {});
    multiply_all(step, {{w.query, step.at.query}}, x);
    // Head by head, so that its keys and values stay in the cache of the core that reads them.
    step.team.share(step.a.resampler->heads * step.m, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) attend_head(step, w, i / step.m, i % step.m);
    });
    const QuantizedRows attended =
        quantize(step, k, w.attention_output.weight.group_size,
                 [&](size_t t) { return step.at.attended + t * k; });  // int8 [m, heads head_size]
    add_to_stream(step, w.attention_output, attended);
}

void feed_forward(const VisionStep& step, const VisionLayer& w) {
    const size_t width = step.a.resampler->feed_forward_size;
    float* const wide = step.at.wide;
    const QuantizedRows x = read_stream(step, w.feed_forward_norm, w.up.weight.group_size, {});
    activate_product(step, w.up, step.a.resampler->activation, x, nullptr, wide);
    const QuantizedRows activated = quantize(step, width, w.down.weight.group_size, [&](size_t t) {
        return wide + t * width;
    });  // int8 [m, feed_forward]
    add_to_stream(step, w.down, activated);
}

}  // namespace

void enter_resampler(VisionStep& step) {
    step.team.share(step.a.resampler->rows, 1, [&](size_t begin, size_t end) {
        const size_t hidden = step.a.hidden_size;
        std::copy_n(step.w.latents + begin * hidden, (end - begin) * hidden,
                    step.at.residual + (own_begin(step) + begin) * hidden);
    });
}

void resampler_layer(VisionStep& step, size_t number) {
    const VisionLayer& layer = step.w.resampler[number];
    // No row may change before the keys and values of all have been made of it.
    for_rows(step, step.a.first_kept(), own_end(step), [&] { store_keys_and_values(step, layer); });
    for_rows(step, own_begin(step), own_end(step), [&] {
        attention(step, layer);
        feed_forward(step, layer);
    });
}

void leave_for_blocks(VisionStep& step, float* embeddings) {
    const VisionModel& w = step.w;
    const size_t hidden = step.a.hidden_size;
    const size_t size = w.block_form.query_size();
    const size_t heads = w.block_form.heads;
    const size_t d = w.block_form.head_size;
    size_t begin = step.a.first_kept();
    if (step.a.resampler) {
        begin = own_begin(step);
        step.team.share(step.a.resampler->rows, 1, [&](size_t first, size_t last) {
            for (size_t t = begin + first; t < begin + last; ++t) {
                float* const row = step.at.residual + t * hidden;
                layer_norm(step, w.resampler_norm, hidden, row, row);
            }
        });
    }
    for_rows(step, begin, begin + step.a.tokens(), [&] {
        float* const out = embeddings + (step.first - begin) * w.embedding_size;
        const QuantizedRows x = quantize(step, hidden, w.blocks[0].key.weight.group_size,
                                         [&](size_t t) { return step.residual(t); });
        for (size_t number = 0; number < w.blocks.size(); ++number) {
            const SeenBlock& block = w.blocks[number];
            float* const keys = out + number * 2 * size;
            for (const Linear* linear : {&block.key, &block.value}) {
                float* const y = linear == &block.key ? keys : keys + size;
                step.team.share(blocks_of(linear->weight), grain_of(step),
                                [&](size_t first, size_t last) {
                                    multiply(step, *linear, x, y, w.embedding_size, first, last);
                                });
            }
            const float* const weight = block.key_norm.weight;
            if (weight == nullptr) continue;
            step.team.share(step.m * heads, 1, [&](size_t first, size_t last) {
                for (size_t i = first; i < last; ++i) {
                    float* const key = keys + i / heads * w.embedding_size + i % heads * d;
                    step.kernels.rms_norm(key, weight, d, w.block_form.norm_epsilon, key);
                }
            });
        }
    });
}

}  // namespace awqe
