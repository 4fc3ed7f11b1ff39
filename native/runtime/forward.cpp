// The transformer, top to bottom. forward() at the end is the summary; read it first. The two
// branches of a layer are attention.cpp and feed_forward.cpp, or experts.cpp in its place; step.h
// says what the letters mean.
#include "native/runtime/forward.h"

#include "native/runtime/step.h"

namespace awqe {

// ---- inputs of a matrix -------------------------------------------------------------------------

void normalise(const Step& step, const Norm& norm, const float* x, size_t n, float* y) {
    if (step.a.norm == NormKind::kRms) {
        step.kernels.rms_norm(x, norm.weight, n, step.a.norm_epsilon, y);
    } else {
        step.kernels.layer_norm(x, norm.weight, norm.bias, n, step.a.norm_epsilon, y);
    }
}

QuantizedRows read_stream(const Step& step, const Norm& norm, size_t g) {
    const size_t k = step.a.hidden_size;
    float* const normed = step.buffers.normed + step.team.index() * step.buffers.normed_stride;
    return quantize(step, k, g, [&](size_t t) {
        if (norm.weight == nullptr) return step.residual(t);
        normalise(step, norm, step.residual(t), k, normed);
        return normed;
    });
}

// ---- the stream ---------------------------------------------------------------------------------

namespace {

// The row takes up what a branch has given: float [hidden] each.
void add_row(const Step& step, const Norm& post_norm, float* branch, float* residual) {
    const size_t hidden = step.a.hidden_size;
    if (step.a.norm_places == NormPlaces::kStream) {
        for (size_t n = 0; n < hidden; ++n) residual[n] += branch[n];
        normalise(step, post_norm, residual, hidden, residual);
    } else {
        normalise(step, post_norm, branch, hidden, branch);
        for (size_t n = 0; n < hidden; ++n) residual[n] += branch[n];
    }
}

}  // namespace

void add_to_stream(const Step& step, const Linear& linear, const Norm& post_norm,
                   const QuantizedRows& x, const float* before) {
    const size_t hidden = step.a.hidden_size;
    if (post_norm.weight != nullptr) {
        // A norm needs whole rows.
        multiply_all(step, {{linear, step.projected(0)}}, x);
        step.team.share(step.m, 1, [&](size_t begin, size_t end) {
            for (size_t t = begin; t < end; ++t) {
                add_row(step, post_norm, step.projected(t), step.residual(t));
            }
        });
        return;
    }
    // Whoever computes a row of the matrix also adds it.
    const size_t blocks = blocks_of(linear.weight);
    step.team.share(blocks, grain_of(step), [&](size_t begin, size_t end) {
        multiply(step, linear, x, step.projected(0), hidden, begin, end);
        const size_t first_row = begin * kBlockRows;
        const size_t end_row = std::min<size_t>(end * kBlockRows, hidden);
        for (size_t t = 0; t < step.m; ++t) {
            float* const residual = step.residual(t);
            const float* const projected = step.projected(t);
            if (before != nullptr) {
                const float* const earlier = before + t * hidden;
                for (size_t n = first_row; n < end_row; ++n) residual[n] += earlier[n];
            }
            for (size_t n = first_row; n < end_row; ++n) residual[n] += projected[n];
        }
    });
}

namespace {

// ---- first and last step ------------------------------------------------------------------------

// The cosines and sines of a row's angles: float [head_size / 2] each.
void turn(const Step& step, const Row& row, const float* frequencies, float* cosines,
          float* sines) {
    if (step.a.rope_sections.empty()) {
        rope_angles(row.position, frequencies, step.a.head_size / 2, cosines, sines);
        return;
    }
    if (step.a.rope_interleaved) {
        // The three numbers in turn, as long as both others have angles left; the first has the
        // rest.
        const std::vector<uint32_t>& sections = step.a.rope_sections;
        for (size_t i = 0; i < step.a.head_size / 2; ++i) {
            const size_t kind = i % 3;
            const size_t number = kind != 0 && i < 3 * size_t{sections[kind]} ? kind : 0;
            rope_angles(row.turns.numbers[number], frequencies + i, 1, cosines + i, sines + i);
        }
        return;
    }
    size_t first = 0;
    for (size_t i = 0; i < 3; ++i) {
        const size_t count = step.a.rope_sections[i];
        rope_angles(row.turns.numbers[i], frequencies + first, count, cosines + first,
                    sines + first);
        first += count;
    }
}

// residual = embedding of each row, with its position where positions are learned; otherwise the
// angles of its position for all layers.
void embed(const Step& step) {
    const Architecture& a = step.a;
    const size_t half = a.head_size / 2;
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            const Row& row = step.rows[t];
            float* const residual = step.residual(t);
            if (row.embedding != nullptr) {
                std::copy_n(row.embedding, a.hidden_size, residual);
            } else {
                step.kernels.embedding(&step.model.embedding(), row.token, residual);
            }
            if (a.position == PositionKind::kLearned) {
                const float* const learned =
                    step.model.learned_positions() + row.position * a.hidden_size;
                for (size_t n = 0; n < a.hidden_size; ++n) residual[n] += learned[n];
            }
            if (a.embedding_norm) {
                normalise(step, step.model.embedding_norm(), residual, a.hidden_size, residual);
            }
            for (size_t table = 0; table < step.buffers.rope_tables; ++table) {
                turn(step, row, step.model.inverse_frequencies() + table * half,
                     step.cosines(t, table), step.sines(t, table));
            }
        }
    });
}

// The stream of pictures' rows takes up what the tap of a layer's number has made of them.
void add_tap(const Step& step, size_t number) {
    const size_t hidden = step.a.hidden_size;
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            if (step.rows[t].embedding == nullptr) continue;
            const float* const tap = step.rows[t].embedding + (1 + number) * hidden;
            float* const residual = step.residual(t);
            for (size_t n = 0; n < hidden; ++n) residual[n] += tap[n];
        }
    });
}

// What the head reads of each row that asks for it, before it is quantised.
void hand_out_hidden(const Step& step) {
    if (std::none_of(step.rows, step.rows + step.m, [](const Row& r) { return r.hidden; })) return;
    const Norm& norm = step.model.output_norm();
    const size_t hidden = step.a.hidden_size;
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            float* const out = step.rows[t].hidden;
            if (out == nullptr) continue;
            if (norm.weight == nullptr) {
                std::copy_n(step.residual(t), hidden, out);
            } else {
                normalise(step, norm, step.residual(t), hidden, out);
            }
        }
    });
}

void hand_out_stream(const Step& step) {
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t) {
            std::copy_n(step.residual(t), step.a.hidden_size, step.rows[t].hidden);
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

// logits [vocabulary] of each row = W_head norm(residual) + bias, with their cap.
void head(const Step& step) {
    const Linear& w = step.model.head();
    const float cap = step.a.logit_cap;
    const QuantizedRows x =
        read_stream(step, step.model.output_norm(), w.weight.group_size);  // int8 [m, hidden]
    if (step.m == 1) {
        float* const logits = step.rows[0].logits;
        step.team.share(blocks_of(w.weight), grain_of(step), [&](size_t begin, size_t end) {
            multiply(step, w, x, logits, w.weight.rows, begin, end);
            const size_t first = begin * kBlockRows;
            const size_t count = std::min<size_t>(end * kBlockRows, w.weight.rows) - first;
            if (cap != 0) step.kernels.soft_cap(logits + first, count, cap);
        });
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
                float* const logits = step.rows[t].logits + b * kBlockRows;
                std::copy_n(tile + t * kTileRows, part.weight.rows, logits);
                if (cap != 0) step.kernels.soft_cap(logits, part.weight.rows, cap);
            }
        }
    });
}

// ---- memory -------------------------------------------------------------------------------------

InputSizes largest_input(const Model& model) {
    InputSizes largest;
    for (const std::vector<LayerWeights>* all : {&model.layers(), &model.blocks()}) {
        for (const LayerWeights& w : *all) {
            for (const Linear* linear : w.linears()) largest.add(*linear);
        }
    }
    largest.add(model.head());
    return largest;
}

}  // namespace

Activations::Activations(const Model& model, size_t row_count, unsigned threads, Arena& arena)
    : rows(row_count), experts(model, row_count, threads, arena) {
    const Architecture& a = model.architecture();
    const InputSizes sizes = largest_input(model);
    // A gated block has sizes of its own.
    const Architecture& block = model.cross() == nullptr ? a : model.cross()->form;
    const size_t query_size = std::max(a.query_size(), block.query_size());
    const size_t feed_forward_size = std::max(a.feed_forward_size, block.feed_forward_size);
    residual = arena.take<float>(rows * a.hidden_size);
    query = arena.take<float>(rows * query_size);
    key = arena.take<float>(rows * a.key_size());
    value = arena.take<float>(rows * a.key_size());
    attended = arena.take<float>(rows * query_size);
    waiting = arena.take<float>(a.parallel ? rows * a.hidden_size : 0);
    gate = arena.take<float>(rows * feed_forward_size);
    up = arena.take<float>(rows * feed_forward_size);
    projected = arena.take<float>(rows * a.hidden_size);
    rope_tables = a.rope_table_count();
    cosines = arena.take<float>(rope_tables * rows * (a.head_size / 2));
    sines = arena.take<float>(rope_tables * rows * (a.head_size / 2));
    normed_stride = round_up(a.hidden_size, 16);
    normed = arena.take<float>(threads * normed_stride);
    logits_tile = arena.take<float>(threads * rows * kTileRows);
    block_input = take_rows(arena, rows, sizes.width, sizes.groups);
    own_input = take_rows(arena, threads, sizes.width, sizes.groups);
}

void forward(const Model& model, const KernelTable& kernels, const Block& block,
             const Activations& activations, Team& team, size_t layers) {
    const Activations& at = activations;
    Step step{{kernels, team, at.block_input, at.own_input, block.count},
              model,
              model.architecture(),
              at,
              block.rows,
              0};
    embed(step);
    const size_t all = model.layers().size();
    const CrossArchitecture* const cross = model.cross();
    size_t block_number = 0;  // of the next gated block
    const size_t taps = model.row_size() / model.architecture().hidden_size - 1;
    for (size_t layer = 0; layer < layers; ++layer) {
        const LayerWeights& w = model.layers()[layer];
        if (block_number < model.blocks().size() && cross->before[block_number] == layer) {
            gated_block(step, *cross, model.blocks()[block_number], block_number);
            ++block_number;
        }
        // Behind the last layer's keys and values only the rows matter that give something.
        const size_t wanted = layer + 1 < all ? step.m : block.wanted;
        attention(step, w, layer, wanted);
        if (wanted == 0) continue;
        if (w.experts.router != nullptr) {
            mixture_of_experts(step, w);
        } else {
            feed_forward(step, w);
        }
        if (layer < taps) add_tap(step, layer);
    }
    if (layers < all) return hand_out_stream(step);
    if (block.wanted == 0) return;
    hand_out_hidden(step);
    if (block.heads == 0) return;
    step.keep_last(block.heads);
    head(step);
}

}  // namespace awqe
