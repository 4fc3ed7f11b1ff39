// Attention of a layer; step.h says what the letters mean.
#include "native/runtime/step.h"

namespace awqe {
namespace {

// Numbers outside -limit ... limit become the limit; what is not finite becomes NaN.
void clamp(float* x, size_t n, float limit) {
    for (size_t i = 0; i < n; ++i) {
        const float clamped = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
        x[i] = x[i] * 0.0f + clamped;
    }
}

// Norms that go over all heads of a row.
void normalise_whole_rows(const Step& step, const LayerWeights& w) {
    step.team.share(2 * step.m, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const size_t t = i / 2;
            if (i % 2 == 0) {
                normalise(step, w.query_norm, step.query(t), step.a.query_size(), step.query(t));
            } else {
                normalise(step, w.key_norm, step.key(t), step.a.key_size(), step.key(t));
            }
        }
    });
}

// Norms of `count` heads from head `first` on: x [count, head_size].
void normalise_heads(const Step& step, const Norm& norm, size_t first, size_t count, float* x) {
    const size_t d = step.a.head_size;
    const bool own = step.a.qk_norm == QkNorm::kHeads;
    for (size_t i = 0; i < count; ++i) {
        const size_t from = own ? (first + i) * d : 0;
        const Norm of_head = {norm.weight + from,
                              norm.bias == nullptr ? nullptr : norm.bias + from};
        normalise(step, of_head, x + i * d, d, x + i * d);
    }
}

// Norm, limits and rotation of token t's query heads that belong to key-value head h, and of its
// key; key and value into the cache.
void prepare_head(const Step& step, const LayerWeights& w, size_t layer, size_t t, size_t h) {
    const Architecture& a = step.a;
    const size_t d = a.head_size;
    const size_t group = a.heads / a.kv_heads;
    float* const queries = step.query(t) + h * group * d;  // [group, d]
    float* const key = step.key(t) + h * d;                // [d]
    float* const value = step.value(t) + h * d;            // [d]
    if (a.qk_norm == QkNorm::kHead || a.qk_norm == QkNorm::kHeads) {
        normalise_heads(step, w.query_norm, h * group, group, queries);
        normalise_heads(step, w.key_norm, h, 1, key);
    }
    if (a.qkv_clamp != 0) {
        clamp(queries, group * d, a.qkv_clamp);
        clamp(key, d, a.qkv_clamp);
        clamp(value, d, a.qkv_clamp);
    }
    if (a.position == PositionKind::kRotary) {
        const size_t table = a.rope_tables[layer];
        step.kernels.rope(queries, group, d, step.cosines(t, table), step.sines(t, table));
        step.kernels.rope(key, 1, d, step.cosines(t, table), step.sines(t, table));
    }
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
    const size_t behind = step.rows[t].position + 1;
    const size_t window = a.sliding_windows[layer];
    const size_t begin = window == 0 || window >= behind ? 0 : behind - window;
    const size_t end = step.rows[t].seen;
    const float* const queries = step.query(t) + h * group * d;
    float* const out = step.attended(t) + h * group * d;
    const float* const slopes = step.model.alibi_slopes();
    const ScoreChange change = {a.score_cap, slopes == nullptr ? nullptr : slopes + h * group};
    const bool changed = change.cap != 0 || change.slopes != nullptr;
    const ScoreChange* const or_none = changed ? &change : nullptr;
    if (cache.type() == KvType::kF16) {
        const CacheF16 head = cache.f16(layer, h);
        step.kernels.attention_f16(queries, group, &head, d, begin, end, or_none, out);
    } else {
        const CacheS8 head = cache.s8(layer, h);
        step.kernels.attention_s8(queries, group, &head, d, begin, end, or_none, out);
    }
}

}  // namespace

// The stream takes up W_o attention(norm(stream)).
void attention(Step& step, const LayerWeights& w, size_t layer, size_t wanted) {
    const size_t heads = step.a.kv_heads;
    const QuantizedRows x =
        read_stream(step, w.attention_norm, w.query.weight.group_size);  // int8 [m, hidden]
    multiply_all(step, {{w.query, step.query(0)}, {w.key, step.key(0)}, {w.value, step.value(0)}},
                 x);
    if (step.a.qk_norm == QkNorm::kWidth) normalise_whole_rows(step, w);
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
        step.keep_last(wanted);
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
    if (step.a.parallel) {
        // The feed-forward reads the stream as it is: its end adds both.
        multiply_all(step, {{w.attention_output, step.waiting(0)}}, attended);
    } else {
        add_to_stream(step, w.attention_output, w.attention_post_norm, attended, nullptr);
    }
}

}  // namespace awqe
