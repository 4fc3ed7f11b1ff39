// A gated block: attention to a picture, then a feed-forward. step.h says what the letters mean;
// the gates lie in the last matrix of each branch.
#include "native/runtime/picture_rows.h"
#include "native/runtime/step.h"

namespace awqe {
namespace {

// attended[t][head h] = softmax(query . keys) . values over the rows of the picture that row t
// sees, or zeros.
void look_head(const Step& step, const LayerWeights& w, size_t number, size_t t, size_t h) {
    const size_t d = step.a.head_size;
    float* const query = step.query(t) + h * d;
    float* const out = step.attended(t) + h * d;
    const PictureRows* const picture = step.rows[t].picture;
    if (picture == nullptr) {
        std::fill_n(out, d, 0.0f);
        return;
    }
    if (w.query_norm.weight != nullptr) normalise(step, w.query_norm, query, d, query);
    const CacheF16 rows = picture->head(number, h);
    step.kernels.attention_f16(query, 1, &rows, d, 0, picture->count(), nullptr, out);
}

// The stream takes up W_o attention(W_q norm(stream)).
void look(const Step& step, const LayerWeights& w, size_t number) {
    const QuantizedRows x =
        read_stream(step, w.attention_norm, w.query.weight.group_size);  // int8 [m, hidden]
    multiply_all(step, {{w.query, step.query(0)}}, x);
    // Head by head, as in attention.cpp.
    step.team.share(step.m * step.a.heads, 1, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) look_head(step, w, number, i % step.m, i / step.m);
    });
    const QuantizedRows attended =
        quantize(step, step.a.query_size(), w.attention_output.weight.group_size,
                 [&](size_t t) { return step.attended(t); });  // int8 [m, heads * head_size]
    add_to_stream(step, w.attention_output, w.attention_post_norm, attended, nullptr);
}

}  // namespace

void gated_block(const Step& outer, const CrossArchitecture& cross, const LayerWeights& w,
                 size_t number) {
    const Step step{static_cast<const Working&>(outer),
                    outer.model,
                    cross.form,
                    outer.buffers,
                    outer.rows,
                    outer.first};
    look(step, w, number);
    feed_forward(step, w);
}

}  // namespace awqe
