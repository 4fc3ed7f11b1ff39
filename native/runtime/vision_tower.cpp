// Patches and layers of a vision tower; see vision_tower.h. Orders of the operations:
// native/ARITHMETIC.md, section 11.
#include "native/runtime/vision_tower.h"

#include <algorithm>
#include <vector>

#include "native/kernels/rope/rope_f32.h"

namespace awqe {
namespace {

// ---- patches ------------------------------------------------------------------------------------

// The numbers of patch p, channel by channel, row by row: float [3, patch, patch].
const float* numbers_of(const VisionStep& step, const uint8_t* pixels, size_t p) {
    const size_t size = step.a.patch_size;
    const size_t line = step.shape.line * 3;
    const uint8_t* const corner =
        pixels + p / step.shape.width * size * line + p % step.shape.width * size * 3;
    float* const row = step.own_row();
    for (size_t c = 0; c < 3; ++c) {
        const float* const values = step.w.pixel_values + c * 256;
        for (size_t y = 0; y < size; ++y) {
            for (size_t x = 0; x < size; ++x) {
                row[(c * size + y) * size + x] = values[corner[y * line + x * 3 + c]];
            }
        }
    }
    return row;
}

// Of a side of a table: the two rows around a place, and how far it is from the first of them.
struct Between {
    size_t first;
    size_t second;
    float share;
};

// Where line i of n lies when the first and the last lie on those of the table.
Between between(size_t i, size_t n, size_t side) {
    if (n == 1) return {0, 0, 0.0f};
    const size_t at = i * (side - 1);
    const size_t first = at / (n - 1);
    return {first, std::min(first + 1, side - 1),
            static_cast<float>(at % (n - 1)) / static_cast<float>(n - 1)};
}

// to[n] = made[n] + the position of a patch, for [begin, end): four rows of the table, weighted.
void add_position(const VisionStep& step, size_t patch, const float* made, float* to, size_t begin,
                  size_t end) {
    const size_t side = step.a.position_grid;
    const Between y = between(patch / step.shape.width, step.shape.height, side);
    const Between x = between(patch % step.shape.width, step.shape.width, side);
    const auto row = [&](size_t r, size_t c) {
        return step.w.positions + (r * side + c) * step.a.hidden_size;
    };
    const float* const rows[] = {row(y.first, x.first), row(y.first, x.second),
                                 row(y.second, x.first), row(y.second, x.second)};
    const float above = 1.0f - y.share;
    const float left = 1.0f - x.share;
    const float weights[] = {above * left, above * x.share, y.share * left, y.share * x.share};
    for (size_t n = begin; n < end; ++n) {
        float position = weights[0] * rows[0][n];
        for (size_t i = 1; i < 4; ++i) position += weights[i] * rows[i][n];
        to[n] = made[n] + position;
    }
}

// The stream of every patch = W patch + bias + its position.
void embed_patches(VisionStep& step, const uint8_t* pixels) {
    const PackedMatrix& w = step.w.patches.weight;
    const size_t hidden = step.a.hidden_size;
    const size_t before = step.a.class_token ? 1 : 0;  // rows before the first patch
    step.for_strips(step.shape.patches(), [&] {
        const QuantizedRows x = quantize(step, w.columns, w.group_size, [&](size_t t) {
            return numbers_of(step, pixels, step.patch_of(before + step.first + t));
        });  // int8 [m, 3 p p]
        const size_t row = before + step.first;
        step.team.share(blocks_of(w), grain_of(step), [&](size_t begin, size_t end) {
            multiply(step, step.w.patches, x, step.at.branch, hidden, begin, end);
            const size_t end_column = std::min<size_t>(end * kBlockRows, hidden);
            for (size_t t = 0; t < step.m; ++t) {
                float* const residual = step.at.residual + (row + t) * hidden;
                const float* const made = step.at.branch + t * hidden;
                if (step.a.position_grid != 0) {
                    add_position(step, step.patch_of(row + t), made, residual, begin * kBlockRows,
                                 end_column);
                    continue;
                }
                if (step.a.rotary) {
                    std::copy(made + begin * kBlockRows, made + end_column,
                              residual + begin * kBlockRows);
                    continue;
                }
                const float* const position = step.w.positions + (row + t) * hidden;
                for (size_t n = begin * kBlockRows; n < end_column; ++n) {
                    residual[n] = made[n] + position[n];
                }
            }
        });
    });
}

// ---- layers -------------------------------------------------------------------------------------

void normalise(const VisionStep& step, const Norm& norm, const float* x, float* y) {
    if (step.a.rms) {
        step.kernels.rms_norm(x, norm.weight, step.a.hidden_size, step.a.norm_epsilon, y);
        return;
    }
    step.kernels.layer_norm(x, norm.weight, norm.bias, step.a.hidden_size, step.a.norm_epsilon, y);
}

// The norm of the strip's stream: int8 [m, hidden].
QuantizedRows read_stream(const VisionStep& step, const Norm& norm, size_t g) {
    return quantize(step, step.a.hidden_size, g, [&](size_t t) {
        float* const row = step.own_row();
        normalise(step, norm, step.residual(t), row);
        return row;
    });
}

// Turns one head of a row by the row and the column of its patch.
void turn(const VisionStep& step, size_t row, float* x) {
    if (!step.a.rotary) return;
    const size_t half = step.a.head_size / 2;
    step.kernels.rope(x, 1, step.a.head_size, step.at.cosines + row * half,
                      step.at.sines + row * half);
}

// Keys and values of the strip, as the cache of a decoder would hold them.
void store_keys_and_values(const VisionStep& step, const VisionLayer& w) {
    const size_t rows = step.rows();
    const size_t heads = step.a.heads;
    const size_t d = step.a.head_size;
    float* const keys = step.at.query;
    float* const values = step.at.attended;
    const QuantizedRows x = read_stream(step, w.attention_norm, w.key.weight.group_size);
    multiply_all(step, {{w.key, keys}, {w.value, values}}, x);
    step.team.share(step.m * heads, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t t = i / heads;
            const size_t h = i % heads;
            const size_t from = (t * heads + h) * d;
            const size_t to = (h * rows + step.first + t) * d;
            turn(step, step.first + t, keys + from);
            step.kernels.store_half(keys + from, d, step.at.keys + to);
            step.kernels.store_half(values + from, d, step.at.values + to);
        }
    });
}

// attended[first_row ... first_row + count) of head h = softmax(query . keys) . values, over the
// rows [begin, end) of the picture.
void attend_head(const VisionStep& step, size_t h, size_t first_row, size_t count, size_t begin,
                 size_t end) {
    const size_t rows = step.rows();
    const size_t d = step.a.head_size;
    const size_t stride = step.a.query_size();
    float* const queries =
        step.at.head_rows + step.team.index() * 2 * VisionActivations::kQueries * d;
    float* const out = queries + VisionActivations::kQueries * d;
    for (size_t t = 0; t < count; ++t) {
        std::copy_n(step.at.query + (first_row + t) * stride + h * d, d, queries + t * d);
        turn(step, step.first + first_row + t, queries + t * d);
    }
    const CacheF16 head = {step.at.keys + h * rows * d, step.at.values + h * rows * d, d,
                           rows};  // a ring that no position leaves
    step.kernels.attention_f16(queries, count, &head, d, begin, end, nullptr, out);
    for (size_t t = 0; t < count; ++t) {
        std::copy_n(out + t * d, d, step.at.attended + (first_row + t) * stride + h * d);
    }
}

// The same, each row over its window, or all of them over all rows.
void attend_rows(const VisionStep& step, size_t h, size_t first_row, size_t count, bool windows) {
    if (!windows) {
        attend_head(step, h, first_row, count, 0, step.rows());
        return;
    }
    const size_t last = first_row + count;
    while (first_row < last) {
        const size_t row = step.first + first_row;
        const size_t begin = step.at.window_begin[row];
        const size_t end = step.at.window_end[row];
        const size_t together = std::min(last - first_row, end - row);
        attend_head(step, h, first_row, together, begin, end);
        first_row += together;
    }
}

// The strip's stream takes up W_o attention(norm(stream)).
void attention(const VisionStep& step, const VisionLayer& w, bool windows) {
    constexpr size_t kQueries = VisionActivations::kQueries;
    const size_t k = step.a.query_size();
    const QuantizedRows x = read_stream(step, w.attention_norm, w.query.weight.group_size);
    multiply_all(step, {{w.query, step.at.query}}, x);
    const size_t parts = (step.m + kQueries - 1) / kQueries;
    // Head by head, so that its keys and values stay in the cache of the core that reads them.
    step.team.share(step.a.heads * parts, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t row = i % parts * kQueries;
            attend_rows(step, i / parts, row, std::min(kQueries, step.m - row), windows);
        }
    });
    const QuantizedRows attended =
        quantize(step, k, w.attention_output.weight.group_size,
                 [&](size_t t) { return step.at.attended + t * k; });  // int8 [m, heads head_size]
    add_to_stream(step, w.attention_output, attended);
}

// The strip's stream takes up W_down act(W_up norm(stream)), or W_down (act(W_gate ..) * W_up ..).
void feed_forward(const VisionStep& step, const VisionLayer& w) {
    const size_t width = step.a.feed_forward_size;
    float* const wide = step.at.wide;
    const QuantizedRows x = read_stream(step, w.feed_forward_norm, w.up.weight.group_size);
    if (step.a.gated) {
        multiply_all(step, {{w.up, step.at.gate}}, x);
        activate_product(step, w.gate, step.a.activation, x, step.at.gate, wide);
    } else {
        activate_product(step, w.up, step.a.activation, x, nullptr, wide);
    }
    const QuantizedRows activated = quantize(step, width, w.down.weight.group_size, [&](size_t t) {
        return wide + t * width;
    });  // int8 [m, feed_forward]
    add_to_stream(step, w.down, activated);
}

}  // namespace

void add_to_stream(const VisionStep& step, const Linear& linear, const QuantizedRows& x) {
    const size_t hidden = step.a.hidden_size;
    float* const branch = step.at.branch;
    step.team.share(blocks_of(linear.weight), grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, linear, x, branch, hidden, begin, end);
        const size_t end_column = std::min<size_t>(end * kBlockRows, hidden);
        for (size_t t = 0; t < step.m; ++t) {
            float* const residual = step.residual(t);
            for (size_t n = begin * kBlockRows; n < end_column; ++n) {
                residual[n] += branch[t * hidden + n];
            }
        }
    });
}

void activate_product(const VisionStep& step, const Linear& linear, Activation activation,
                      const QuantizedRows& x, const float* factor, float* y) {
    const size_t width = linear.weight.rows;
    const ActivationFunction function = step.kernels.activation[activation];
    step.team.share(blocks_of(linear.weight), grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, linear, x, y, width, begin, end);
        const size_t first = begin * kBlockRows;
        const size_t count = std::min<size_t>(end * kBlockRows, width) - first;
        for (size_t t = 0; t < step.m; ++t) {
            float* const part = y + t * width + first;
            function(part, factor == nullptr ? nullptr : factor + t * width + first, count, part);
        }
    });
}

void normalise_stream(VisionStep& step, const Norm& norm) {
    step.first = 0;
    step.team.share(step.rows(), 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            normalise(step, norm, step.residual(t), step.residual(t));
        }
    });
}

namespace {

// Window after window, from the top left; within one row after row. Windows at the edges are
// smaller.
void order_rows(const VisionStep& step) {
    const size_t side = step.a.window;
    const VisionShape& shape = step.shape;
    size_t row = 0;
    for (size_t top = 0; top < shape.height; top += side) {
        for (size_t left = 0; left < shape.width; left += side) {
            const size_t bottom = std::min(top + side, shape.height);
            const size_t right = std::min(left + side, shape.width);
            const size_t begin = row;
            const size_t end = begin + (bottom - top) * (right - left);
            for (size_t y = top; y < bottom; ++y) {
                for (size_t x = left; x < right; ++x, ++row) {
                    const size_t patch = y * shape.width + x;
                    step.at.patch_of_row[row] = static_cast<uint32_t>(patch);
                    step.at.row_of_patch[patch] = static_cast<uint32_t>(row);
                    step.at.window_begin[row] = static_cast<uint32_t>(begin);
                    step.at.window_end[row] = static_cast<uint32_t>(end);
                }
            }
        }
    }
}

// Half of a head's angles turn by the row of the patch, half by its column.
void prepare_angles(const VisionStep& step) {
    const size_t quarter = step.a.head_size / 4;
    step.team.share(step.rows(), 1, [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; ++row) {
            const size_t patch = step.patch_of(row);
            float* const cosines = step.at.cosines + row * 2 * quarter;
            float* const sines = step.at.sines + row * 2 * quarter;
            rope_angles(patch / step.shape.width, step.w.frequencies, quarter, cosines, sines);
            rope_angles(patch % step.shape.width, step.w.frequencies, quarter, cosines + quarter,
                        sines + quarter);
        }
    });
}

}  // namespace

void enter_tower(VisionStep& step, const uint8_t* pixels) {
    if (step.a.window != 0) {
        step.team.share(1, 1, [&](size_t, size_t) { order_rows(step); });
    }
    if (step.a.rotary) prepare_angles(step);
    embed_patches(step, pixels);
    if (step.a.class_token) {
        step.team.share(1, 1, [&](size_t, size_t) {
            for (size_t n = 0; n < step.a.hidden_size; ++n) {
                step.at.residual[n] = step.w.class_token[n] + step.w.positions[n];
            }
        });
    }
    if (step.a.pre_norm) normalise_stream(step, step.w.pre_norm);
}

void tower_layer(VisionStep& step, size_t number) {
    const VisionLayer& layer = step.w.layers[number];
    const std::vector<uint32_t>& full = step.a.full_layers;
    const bool windows =
        step.a.window != 0 && std::find(full.begin(), full.end(), number) == full.end();
    // No row may change before the keys and values of all have been made of it.
    step.for_strips(step.rows(), [&] { store_keys_and_values(step, layer); });
    step.for_strips(step.rows(), [&] {
        attention(step, layer, windows);
        feed_forward(step, layer);
    });
}

VisionActivations::VisionActivations(const VisionModel& w, const VisionShape& shape,
                                     unsigned threads, Arena& arena) {
    const VisionArchitecture& a = w.architecture;
    const size_t rows = shape.patches() + (a.class_token ? 1 : 0);
    // A resampler has rows and widths of its own.
    const ResamplerArchitecture none = {};
    const ResamplerArchitecture& r = a.resampler ? *a.resampler : none;
    const size_t all_rows = rows + r.rows;
    const size_t query_size = std::max(a.query_size(), r.query_size());
    const size_t seen = std::max(rows * a.query_size(), all_rows * r.query_size());
    const size_t strip = std::min(kStripRows, all_rows);  // there are no more tokens than these
    InputSizes sizes;
    for (const Linear* linear : w.linears()) sizes.add(*linear);
    residual = arena.take<float>(all_rows * a.hidden_size);
    keys = arena.take<uint16_t>(seen);
    values = arena.take<uint16_t>(seen);
    const size_t angles = a.rotary ? rows * (a.head_size / 2) : 0;
    cosines = arena.take<float>(angles);
    sines = arena.take<float>(angles);
    const size_t ordered = a.window != 0 ? rows : 0;
    for (uint32_t** array : {&patch_of_row, &row_of_patch, &window_begin, &window_end}) {
        *array = arena.take<uint32_t>(ordered);
    }
    query = arena.take<float>(strip * query_size);
    attended = arena.take<float>(strip * query_size);
    wide = arena.take<float>(
        strip * std::max({a.feed_forward_size, a.connector_size, r.feed_forward_size}));
    gate = arena.take<float>(a.gated ? strip * a.feed_forward_size : 0);
    branch = arena.take<float>(strip * a.hidden_size);
    row_stride = round_up(sizes.width, 16);
    row = arena.take<float>(threads * row_stride);
    head_rows = arena.take<float>(threads * 2 * kQueries * a.head_size);
    block_input = take_rows(arena, strip, sizes.width, sizes.groups);
    own_input = take_rows(arena, threads, sizes.width, sizes.groups);
}

}  // namespace awqe
