// The transformer, top to bottom. forward() at the end is the summary; read it first.
//
// Letters: m rows of the block, n outputs and k inputs of a matrix, t one row, h one key-value
// head. Every member of the team runs every function here. share() divides work and then waits for
// all, so whatever stands before a share() is visible to everybody after it.
#include "native/runtime/forward.h"

#include <algorithm>
#include <initializer_list>

namespace awqe {
namespace {

size_t blocks_of(const PackedMatrix& w) { return (w.rows + kBlockRows - 1) / kBlockRows; }

// What all steps of a block have in common.
struct Step {
    const Model& model;
    const Architecture& a;
    const KernelTable& kernels;
    const Activations& buffers;
    Team& team;

    // The part of the block that is still computed: its last rows.
    const Row* rows;  // [m]
    size_t first;     // where they lie in the arrays
    size_t m;

    KvCache& cache(size_t t) const { return static_cast<CachedSequence*>(rows[t].sequence)->cache; }

    float* residual(size_t t) const { return buffers.residual + (first + t) * a.hidden_size; }
    float* query(size_t t) const { return buffers.query + (first + t) * a.query_size(); }
    float* key(size_t t) const { return buffers.key + (first + t) * a.key_size(); }
    float* value(size_t t) const { return buffers.value + (first + t) * a.key_size(); }
    float* attended(size_t t) const { return buffers.attended + (first + t) * a.query_size(); }
    float* gate(size_t t) const { return buffers.gate + (first + t) * a.feed_forward_size; }
    float* up(size_t t) const { return buffers.up + (first + t) * a.feed_forward_size; }
    float* projected(size_t t) const { return buffers.projected + (first + t) * a.hidden_size; }
    const float* cosines(size_t t) const { return buffers.cosines + (first + t) * a.head_size / 2; }
    const float* sines(size_t t) const { return buffers.sines + (first + t) * a.head_size / 2; }
};

// ---- inputs of a matrix -------------------------------------------------------------------------

// The buffer's memory as rows of k inputs in groups of g, beginning at `row`.
QuantizedRows rows_of(const QuantizedRows& buffer, size_t row, size_t k, size_t g) {
    return {buffer.codes + row * buffer.code_stride, buffer.scales + row * buffer.group_stride,
            buffer.sums + row * buffer.group_stride, round_up(k, 64), (k + g - 1) / g};
}

// Quantises the rows that make_row(t) returns, float [k] each: int8 [m, k].
// A single row is quantised by every member for itself: that takes less time than one member doing
// it while the others wait.
template <class MakeRow>
QuantizedRows quantize(const Step& step, size_t k, size_t g, const MakeRow& make_row) {
    if (step.m == 1) {
        const QuantizedRows own = rows_of(step.buffers.own_input, step.team.index(), k, g);
        step.kernels.quantize_act(make_row(0), k, g, &own, 0);
        return own;
    }
    const QuantizedRows shared = rows_of(step.buffers.block_input, 0, k, g);
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t)
            step.kernels.quantize_act(make_row(t), k, g, &shared, t);
    });
    return shared;
}

// RMS norm of the residual stream, quantised.
QuantizedRows norm_and_quantize(const Step& step, const float* norm_weight, size_t g) {
    const size_t k = step.a.hidden_size;
    float* const normed = step.buffers.normed + step.team.index() * step.buffers.normed_stride;
    return quantize(step, k, g, [&](size_t t) {
        step.kernels.rms_norm(step.residual(t), norm_weight, k, step.a.norm_epsilon, normed);
        return normed;
    });
}

// ---- products -----------------------------------------------------------------------------------

// Blocks of rows that one thread takes at a time: for several tokens the 32 rows of a register
// tile.
size_t grain_of(const Step& step) { return step.m == 1 ? 1 : 8; }

// y[t][n] = W x[t] + bias, for the blocks of rows [first_block, end_block). y: float [m, y_stride]
void multiply(const Step& step, const Linear& linear, const QuantizedRows& x, float* y,
              size_t y_stride, size_t first_block, size_t end_block) {
    const PackedMatrix& w = linear.weight;
    const size_t begin = first_block * kBlockRows;
    const size_t end = std::min<size_t>(end_block * kBlockRows, w.rows);
    if (step.m == 1) {
        step.kernels.gemv[w.bits](&w, &x, y, begin, end);
    } else {
        step.kernels.gemm[w.bits](&w, &x, step.m, y, y_stride, begin, end);
    }
    if (linear.bias == nullptr) return;
    for (size_t t = 0; t < step.m; ++t) {
        for (size_t n = begin; n < end; ++n) y[t * y_stride + n] += linear.bias[n];
    }
}

// Matrices with one input, divided as if their rows followed each other.
struct Product {
    const Linear& linear;
    float* y;  // [m, n]
};
void multiply_all(const Step& step, std::initializer_list<Product> products,
                  const QuantizedRows& x) {
    size_t total = 0;
    for (const Product& p : products) total += blocks_of(p.linear.weight);
    step.team.share(total, grain_of(step), [&](size_t begin, size_t end) {
        for (const Product& p : products) {
            const size_t blocks = blocks_of(p.linear.weight);
            if (begin < blocks && begin < end) {
                multiply(step, p.linear, x, p.y, p.linear.weight.rows, begin,
                         std::min(end, blocks));
            }
            begin -= std::min(begin, blocks);
            end -= std::min(end, blocks);
        }
    });
}

// residual[t] += W x[t] + bias: whoever computes a row also adds it.
void multiply_and_add(const Step& step, const Linear& linear, const QuantizedRows& x) {
    const size_t hidden = step.a.hidden_size;
    const size_t blocks = blocks_of(linear.weight);
    step.team.share(blocks, grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, linear, x, step.projected(0), hidden, begin, end);
        const size_t first_row = begin * kBlockRows;
        const size_t end_row = std::min<size_t>(end * kBlockRows, hidden);
        for (size_t t = 0; t < step.m; ++t) {
            float* const residual = step.residual(t);
            const float* const projected = step.projected(t);
            for (size_t n = first_row; n < end_row; ++n) residual[n] += projected[n];
        }
    });
}

// ---- attention ----------------------------------------------------------------------------------

// Norm and rotation of token t's query heads that belong to key-value head h, and of its key; key
// and value into the cache.
void prepare_head(const Step& step, const LayerWeights& w, size_t layer, size_t t, size_t h) {
    const Architecture& a = step.a;
    const size_t d = a.head_size;
    const size_t group = a.heads / a.kv_heads;
    float* const queries = step.query(t) + h * group * d;  // [group, d]
    float* const key = step.key(t) + h * d;                // [d]
    const float* const value = step.value(t) + h * d;      // [d]
    if (a.qk_norm) {
        for (size_t i = 0; i < group; ++i) {
            step.kernels.rms_norm(queries + i * d, w.query_norm, d, a.norm_epsilon,
                                  queries + i * d);
        }
        step.kernels.rms_norm(key, w.key_norm, d, a.norm_epsilon, key);
    }
    step.kernels.rope(queries, group, d, step.cosines(t), step.sines(t));
    step.kernels.rope(key, 1, d, step.cosines(t), step.sines(t));
    KvCache& cache = step.cache(t);
    if (cache.type() == KvType::kF16) {
        const KvCache::F16Rows rows = cache.f16_rows(layer, h, step.rows[t].position);
        step.kernels.store_half(key, d, rows.key);
        step.kernels.store_half(value, d, rows.value);
    } else {
        int32_t sum;
        const KvCache::S8Rows rows = cache.s8_rows(layer, h, step.rows[t].position, &sum);
        step.kernels.quantize_act(key, d, d, &rows.key, 0);
        step.kernels.quantize_act(value, d, d, &rows.value, 0);
    }
}

// attended[t][heads of h] = softmax(query . keys) . values
void attend_head(const Step& step, size_t layer, size_t t, size_t h) {
    const Architecture& a = step.a;
    const size_t d = a.head_size;
    const size_t group = a.heads / a.kv_heads;
    const KvCache& cache = step.cache(t);
    const size_t end = step.rows[t].position + 1;
    const size_t window = a.sliding_windows[layer];
    const size_t begin = window == 0 || window >= end ? 0 : end - window;
    const float* const queries = step.query(t) + h * group * d;
    float* const out = step.attended(t) + h * group * d;
    if (cache.type() == KvType::kF16) {
        const CacheF16 head = cache.f16(layer, h);
        step.kernels.attention_f16(queries, group, &head, d, begin, end, out);
    } else {
        const CacheS8 head = cache.s8(layer, h);
        step.kernels.attention_s8(queries, group, &head, d, begin, end, out);
    }
}

// Keeps only the last `count` rows of the block.
void keep_last(Step& step, size_t count) {
    const size_t dropped = step.m - count;
    step.rows += dropped;
    step.first += dropped;
    step.m = count;
}

// residual += W_o attention(norm(residual)). `wanted`: how many of the last rows anybody needs
// afterwards.
void attention(Step& step, const LayerWeights& w, size_t layer, size_t wanted) {
    const size_t heads = step.a.kv_heads;
    const QuantizedRows x =
        norm_and_quantize(step, w.attention_norm, w.query.weight.group_size);  // int8 [m, hidden]
    multiply_all(step, {{w.query, step.query(0)}, {w.key, step.key(0)}, {w.value, step.value(0)}},
                 x);
    if (step.m == 1) {
        // Nobody else needs this row's key: no waiting between the two.
        step.team.share(heads, 1, [&](size_t begin, size_t end) {
            for (size_t h = begin; h < end; ++h) {
                prepare_head(step, w, layer, 0, h);
                attend_head(step, layer, 0, h);
            }
        });
    } else {
        step.team.share(step.m * heads, 1, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; ++i) prepare_head(step, w, layer, i / heads, i % heads);
        });
        keep_last(step, wanted);
        // Head by head, so that its keys and values stay in the cache of the core that reads them
        // for many rows of one prompt.
        step.team.share(step.m * heads, 1, [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; ++i) attend_head(step, layer, i % step.m, i / step.m);
        });
    }
    if (wanted == 0) return;
    const QuantizedRows attended =
        quantize(step, step.a.query_size(), w.attention_output.weight.group_size,
                 [&](size_t t) { return step.attended(t); });  // int8 [m, heads * head_size]
    multiply_and_add(step, w.attention_output, attended);
}

// ---- feed-forward -------------------------------------------------------------------------------

// residual += W_down (act(W_gate x) * W_up x), x = norm(residual)
void feed_forward(const Step& step, const LayerWeights& w) {
    const size_t width = step.a.feed_forward_size;
    const QuantizedRows x =
        norm_and_quantize(step, w.feed_forward_norm, w.gate.weight.group_size);  // int8 [m, hidden]
    const ActivationFunction activate = step.kernels.activation[step.a.activation];
    step.team.share(blocks_of(w.gate.weight), grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, w.gate, x, step.gate(0), width, begin, end);
        multiply(step, w.up, x, step.up(0), width, begin, end);
        const size_t first = begin * kBlockRows;
        const size_t count = std::min<size_t>(end * kBlockRows, width) - first;
        for (size_t t = 0; t < step.m; ++t) {
            activate(step.gate(t) + first, step.up(t) + first, count, step.gate(t) + first);
        }
    });
    const QuantizedRows gated = quantize(step, width, w.down.weight.group_size,
                                         [&](size_t t) { return step.gate(t); });  // int8 [m, ff]
    multiply_and_add(step, w.down, gated);
}

// ---- first and last step ------------------------------------------------------------------------

// residual = embedding of each row; angles of their positions, for all layers.
void embed(const Step& step) {
    const size_t half = step.a.head_size / 2;
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            const Row& row = step.rows[t];
            if (row.embedding != nullptr) {
                std::copy_n(row.embedding, step.a.hidden_size, step.residual(t));
            } else {
                step.kernels.embedding(&step.model.embedding(), row.token, step.residual(t));
            }
            rope_angles(row.position, step.model.inverse_frequencies(), half,
                        step.buffers.cosines + t * half, step.buffers.sines + t * half);
        }
    });
}

// The blocks of rows [first_block, end_block) of a matrix, as a matrix.
Linear part_of(const Linear& linear, size_t first_block, size_t end_block) {
    const size_t first_row = first_block * kBlockRows;
    Linear part = linear;
    part.weight.blocks += first_block * linear.weight.block_bytes;
    part.weight.rows = std::min<size_t>(end_block * kBlockRows, linear.weight.rows) - first_row;
    if (part.bias != nullptr) part.bias += first_row;
    return part;
}

// logits [vocabulary] of each row = W_head norm(residual)
void head(const Step& step) {
    const Linear& w = step.model.head();
    const QuantizedRows x =
        norm_and_quantize(step, step.model.output_norm(), w.weight.group_size);  // int8 [m, hidden]
    if (step.m == 1) {
        multiply_all(step, {{w, step.rows[0].logits}}, x);
        return;
    }
    // The rows' arrays lie anywhere: through a tile that stays in the core's cache.
    constexpr size_t kTileRows = Activations::kTileRows;
    float* const tile =
        step.buffers.logits_tile + step.team.index() * step.buffers.rows * kTileRows;
    step.team.share(blocks_of(w.weight), grain_of(step), [&](size_t begin, size_t end) {
        for (size_t b = begin; b < end; b += kTileRows / kBlockRows) {
            const size_t part_end = std::min(b + kTileRows / kBlockRows, end);
            const Linear part = part_of(w, b, part_end);
            multiply(step, part, x, tile, kTileRows, 0, part_end - b);
            for (size_t t = 0; t < step.m; ++t) {
                std::copy_n(tile + t * kTileRows, part.weight.rows,
                            step.rows[t].logits + b * kBlockRows);
            }
        }
    });
}

// ---- memory -------------------------------------------------------------------------------------

// The widest input and the most groups of any matrix.
struct InputSizes {
    size_t width = 0;
    size_t groups = 0;
};

InputSizes largest_input(const Model& model) {
    InputSizes largest;
    const auto add = [&](const Linear& linear) {
        largest.width = std::max<size_t>(largest.width, linear.weight.columns);
        largest.groups = std::max<size_t>(largest.groups, linear.weight.groups);
    };
    for (const LayerWeights& w : model.layers()) {
        for (const Linear* linear : {&w.query, &w.attention_output, &w.gate, &w.down}) add(*linear);
    }
    add(model.head());
    return largest;
}

QuantizedRows take_rows(Arena& arena, size_t m, const InputSizes& sizes) {
    const size_t code_stride = round_up(sizes.width, 64);
    const size_t group_stride = round_up(sizes.groups, 16);  // 16 floats: a cache line
    return {arena.take<int8_t>(m * code_stride), arena.take<float>(m * group_stride),
            arena.take<int32_t>(m * group_stride), code_stride, group_stride};
}

}  // namespace

Activations::Activations(const Model& model, size_t row_count, unsigned threads, Arena& arena)
    : rows(row_count) {
    const Architecture& a = model.architecture();
    const InputSizes sizes = largest_input(model);
    residual = arena.take<float>(rows * a.hidden_size);
    query = arena.take<float>(rows * a.query_size());
    key = arena.take<float>(rows * a.key_size());
    value = arena.take<float>(rows * a.key_size());
    attended = arena.take<float>(rows * a.query_size());
    gate = arena.take<float>(rows * a.feed_forward_size);
    up = arena.take<float>(rows * a.feed_forward_size);
    projected = arena.take<float>(rows * a.hidden_size);
    cosines = arena.take<float>(rows * (a.head_size / 2));
    sines = arena.take<float>(rows * (a.head_size / 2));
    normed_stride = round_up(a.hidden_size, 16);
    normed = arena.take<float>(threads * normed_stride);
    logits_tile = arena.take<float>(threads * rows * kTileRows);
    block_input = take_rows(arena, rows, sizes);
    own_input = take_rows(arena, threads, sizes);
}

void forward(const Model& model, const KernelTable& kernels, const Block& block,
             const Activations& activations, Team& team) {
    Step step{model, model.architecture(), kernels, activations, team, block.rows, 0, block.count};
    embed(step);
    const size_t layers = model.layers().size();
    for (size_t layer = 0; layer < layers; ++layer) {
        const LayerWeights& w = model.layers()[layer];
        // Behind the last layer's keys and values only the rows matter whose logits somebody wants.
        const size_t wanted = layer + 1 < layers ? step.m : block.wanted;
        attention(step, w, layer, wanted);
        if (wanted > 0) feed_forward(step, w);
    }
    if (block.wanted > 0) head(step);
}

}  // namespace awqe
