// From a tower's rows to rows for a decoder: norm, average, regrouping and the connector's one or
// two matrices; see vision_tower.h. Orders of the operations: native/ARITHMETIC.md, section 11.
#include <algorithm>

#include "native/runtime/vision_tower.h"

namespace awqe {
namespace {

// Row (r, c) of the pooled grid into y: the average over its window of patches, or the patch.
// float [hidden]
void pooled_row(const VisionStep& step, size_t r, size_t c, float* y) {
    const size_t hidden = step.a.hidden_size;
    const size_t pool = step.a.pool;
    const size_t grid = step.shape.width;
    if (pool == 1) {
        std::copy_n(step.at.residual + step.row_of(r * grid + c) * hidden, hidden, y);
        return;
    }
    std::fill_n(y, hidden, 0.0f);
    for (size_t i = 0; i < pool; ++i) {
        for (size_t j = 0; j < pool; ++j) {
            const size_t at = step.row_of((r * pool + i) * grid + c * pool + j);
            const float* const patch = step.at.residual + at * hidden;
            for (size_t n = 0; n < hidden; ++n) y[n] += patch[n];
        }
    }
    const auto count = static_cast<float>(pool * pool);
    for (size_t n = 0; n < hidden; ++n) y[n] /= count;
}

// What a connector reads for a token: neighbours side by side, zeros beyond the edge.
// float [regroup, regroup, hidden]
const float* connector_row(const VisionStep& step, size_t token) {
    const VisionArchitecture& a = step.a;
    const size_t line = a.by_columns ? step.token_lines() : step.token_columns();
    const size_t along = token % line * a.regroup;
    const size_t across = token / line * a.regroup;
    float* const row = step.own_row();
    for (size_t i = 0; i < a.regroup; ++i) {
        for (size_t j = 0; j < a.regroup; ++j) {
            const size_t r = (a.by_columns ? along : across) + i;
            const size_t c = (a.by_columns ? across : along) + j;
            float* const part = row + (i * a.regroup + j) * a.hidden_size;
            if (r < step.shape.height / a.pool && c < step.shape.width / a.pool) {
                pooled_row(step, r, c, part);
            } else {
                std::fill_n(part, a.hidden_size, 0.0f);
            }
        }
    }
    return row;
}

// The same behind the connector's norm.
const float* normed_row(const VisionStep& step, size_t token) {
    const VisionArchitecture& a = step.a;
    const size_t columns = a.connector_columns();
    const float* const row = connector_row(step, token);
    float* const y = step.own_row();
    const Norm& norm = step.w.connector_norm;
    if (a.connector_norm == ConnectorNorm::kRms) {
        step.kernels.rms_norm(row, norm.weight, columns, a.connector_norm_epsilon, y);
    } else if (a.connector_norm == ConnectorNorm::kLayer) {
        step.kernels.layer_norm(row, norm.weight, norm.bias, columns, a.connector_norm_epsilon, y);
    }
    return y;
}

// out[t] = W x[t] + bias for the strip, rows of `embedding_size` numbers.
void put_rows(const VisionStep& step, const Linear& linear, const QuantizedRows& x, float* out) {
    step.team.share(blocks_of(linear.weight), grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, linear, x, out, step.w.embedding_size, begin, end);
    });
}

// out[t] = W_2 act(W_1 x[t]), the same.
void put_rows_of_two(const VisionStep& step, const Linear& first, const Linear& second,
                     const QuantizedRows& x, float* out) {
    const size_t width = step.a.connector_size;
    activate_product(step, first, step.a.connector_activation, x, nullptr, step.at.wide);
    const QuantizedRows activated = quantize(step, width, second.weight.group_size,
                                             [&](size_t t) { return step.at.wide + t * width; });
    put_rows(step, second, activated, out);
}

}  // namespace

void leave_by_tap(VisionStep& step, size_t number, float* embeddings) {
    const VisionModel& w = step.w;
    const VisionTap& tap = w.taps[number];
    const size_t columns = step.a.connector_columns();
    // Behind the row itself and what the taps before gave.
    float* const place = embeddings + (1 + number) * (w.embedding_size / (1 + w.taps.size()));
    step.for_strips(step.tokens(), [&] {
        const QuantizedRows x = quantize(step, columns, tap.first.weight.group_size, [&](size_t t) {
            float* const y = step.own_row();
            step.kernels.layer_norm(connector_row(step, step.first + t), tap.norm.weight,
                                    tap.norm.bias, columns, step.a.norm_epsilon, y);
            return y;
        });
        put_rows_of_two(step, tap.first, tap.second, x, place + step.first * w.embedding_size);
    });
}

void leave_tower(VisionStep& step, float* embeddings) {
    const VisionModel& w = step.w;
    if (step.a.post_norm) normalise_stream(step, w.post_norm);
    step.for_strips(step.tokens(), [&] {
        float* const out = embeddings + step.first * w.embedding_size;
        const QuantizedRows x =
            quantize(step, w.connector.weight.columns, w.connector.weight.group_size,
                     [&](size_t t) { return normed_row(step, step.first + t); });
        if (step.a.connector_size == 0) {
            put_rows(step, w.connector, x, out);
        } else {
            put_rows_of_two(step, w.connector, w.connector_output, x, out);
        }
    });
}

}  // namespace awqe
