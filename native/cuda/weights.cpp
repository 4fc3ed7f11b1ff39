// Placing weights, a layer at a time; see weights.h.
#include "native/cuda/weights.h"

#include <string>

#include "native/cuda/upload.h"

namespace awqe::cuda {

Matrix shape_of(const PackedMatrix& w) {
    Matrix m = {};
    m.rows = static_cast<int>(w.rows);
    m.columns = static_cast<int>(w.columns);
    m.bits = static_cast<int>(w.bits);
    m.group_size = static_cast<int>(w.group_size);
    m.groups = static_cast<int>(w.groups);
    m.padded_columns = static_cast<int>(w.padded_columns);
    m.zero_points_offset = static_cast<int>(w.zero_points_offset);
    m.codes_offset = static_cast<int>(w.codes_offset);
    m.high_plane_offset = static_cast<int>(w.high_plane_offset);
    m.block_bytes = static_cast<int>(w.block_bytes);
    return m;
}

namespace {

size_t matrix_bytes(const PackedMatrix& w) {
    return (w.rows + kBlockRows - 1) / kBlockRows * w.block_bytes;
}

// Where copies lie: each piece begins at a multiple of 256 bytes, as the driver's own allocations
// do.
class Copied {
  public:
    Copied() = default;  // counts only
    Copied(Upload& upload, Address base) : upload_(&upload), base_(base) {}

    size_t used() const { return used_; }
    Address operator()(const void* from, size_t bytes) {
        const Address at = base_ + used_;
        used_ += round_up(bytes, 256);
        if (upload_ != nullptr) upload_->copy(at, from, bytes);
        return at;
    }

  private:
    Upload* upload_ = nullptr;
    Address base_ = 0;
    size_t used_ = 0;
};

// Walks everything that lies together, as often as it takes: to count it, to note where it lies in
// the file, to copy it. Where = Address(const void* from, size_t bytes).
template <class Where>
class Placement {
  public:
    explicit Placement(Where& place) : place_(place) {}

    const float* vector(const float* from, size_t count) {
        if (from == nullptr) return nullptr;
        return reinterpret_cast<const float*>(place_(from, count * sizeof(float)));
    }
    Matrix matrix(const PackedMatrix& w, const float* bias) {
        Matrix m = shape_of(w);
        m.blocks = reinterpret_cast<const unsigned char*>(place_(w.blocks, matrix_bytes(w)));
        m.bias = vector(bias, w.rows);
        return m;
    }
    Matrix linear(const Linear& linear) {
        return linear.weight.rows == 0 ? Matrix{} : matrix(linear.weight, linear.bias);
    }
    NormWeights norm(const Architecture& a, const Norm& from, size_t size) {
        NormWeights norm = {};
        norm.weight = vector(from.weight, size);
        norm.bias = vector(from.bias, size);
        norm.epsilon = a.norm_epsilon;
        norm.layer = a.norm == NormKind::kLayer;
        return norm;
    }

  private:
    Where& place_;
};

template <class Where>
LayerAddresses place_layer(Placement<Where> at, const Architecture& a, const LayerWeights& w) {
    const bool shared = a.qk_norm == QkNorm::kHead;
    LayerAddresses layer = {};
    layer.attention_norm = at.norm(a, w.attention_norm, a.hidden_size);
    layer.query = at.linear(w.query);
    layer.key = at.linear(w.key);
    layer.value = at.linear(w.value);
    layer.query_norm = at.norm(a, w.query_norm, shared ? a.head_size : a.query_size());
    layer.key_norm = at.norm(a, w.key_norm, shared ? a.head_size : a.key_size());
    layer.attention_output = at.linear(w.attention_output);
    layer.attention_post_norm = at.norm(a, w.attention_post_norm, a.hidden_size);
    layer.feed_forward_norm = at.norm(a, w.feed_forward_norm, a.hidden_size);
    layer.gate = at.linear(w.feed_forward.gate);
    layer.up = at.linear(w.feed_forward.up);
    layer.down = at.linear(w.feed_forward.down);
    layer.activation_scales = at.vector(w.feed_forward.activation_scales, a.feed_forward_size);
    layer.router = at.vector(w.experts.router, size_t{a.experts} * a.hidden_size);
    const auto expert = [&](const FeedForward& from) {
        return ExpertAddresses{at.linear(from.gate), at.linear(from.up), at.linear(from.down)};
    };
    for (const FeedForward& each : w.experts.all) layer.experts.push_back(expert(each));
    layer.shared = expert(w.experts.shared);
    layer.shared_router = at.vector(w.experts.shared_router, a.hidden_size);
    layer.feed_forward_post_norm = at.norm(a, w.feed_forward_post_norm, a.hidden_size);
    return layer;
}

// What belongs to no layer, apart from its matrices.
struct RestAddresses {
    NormWeights embedding_norm;
    const float* learned_positions;
    NormWeights output_norm;
    const float* inverse_frequencies;
    const float* alibi_slopes;
    const float* tied_bias;  // of the head where it shares the embedding's matrix
};

template <class Where>
RestAddresses place_rest(Placement<Where> at, const Model& model, bool from_the_beginning) {
    const Architecture& a = model.architecture();
    RestAddresses rest = {};
    if (from_the_beginning) {
        rest.embedding_norm = at.norm(a, model.embedding_norm(), a.hidden_size);
        rest.learned_positions =
            at.vector(model.learned_positions(), size_t{a.context_length} * a.hidden_size);
    }
    rest.output_norm = at.norm(a, model.output_norm(), a.hidden_size);
    rest.inverse_frequencies =
        at.vector(model.inverse_frequencies(), size_t{a.rope_table_count()} * (a.head_size / 2));
    rest.alibi_slopes = at.vector(model.alibi_slopes(), a.heads);
    if (a.tied_head) rest.tied_bias = at.vector(model.head().bias, a.vocabulary_size);
    return rest;
}

}  // namespace

// Calls placed(place) for what shall lie together; each calls its place with a Where.
template <class Place>
void Weights::fill(const Model& model, size_t first_layer, const Place& placed) {
    const Architecture& a = model.architecture();
    // The head of a tied model is the embedding's matrix.
    if (first_layer == 0 || a.tied_head) {
        placed(
            [&](auto& where) { embedding_ = Placement(where).matrix(model.embedding(), nullptr); });
    }
    layers_.resize(a.layers - first_layer);
    for (size_t i = 0; i < layers_.size(); ++i) {
        placed([&](auto& where) {
            layers_[i] = place_layer(Placement(where), a, model.layers()[first_layer + i]);
        });
    }
    RestAddresses rest = {};
    placed([&](auto& where) { rest = place_rest(Placement(where), model, first_layer == 0); });
    embedding_norm_ = rest.embedding_norm;
    learned_positions_ = rest.learned_positions;
    output_norm_ = rest.output_norm;
    inverse_frequencies_ = rest.inverse_frequencies;
    alibi_slopes_ = rest.alibi_slopes;
    if (a.tied_head) {
        head_ = embedding_;
        head_.bias = rest.tied_bias;
    } else {
        placed([&](auto& where) { head_ = Placement(where).linear(model.head()); });
    }
    if (first_layer > 0) embedding_ = Matrix{};
}

uint64_t Weights::bytes(const Model& model, size_t first_layer) {
    uint64_t total = 0;
    Weights nowhere;
    nowhere.fill(model, first_layer, [&](const auto& place) {
        Copied count;
        place(count);
        total += count.used() + kReadBehind;
    });
    return total;
}

Weights::Weights(std::shared_ptr<const Device> device, const Model& model, size_t first_layer) {
    if (device->facts().integrated && model.is_mapped_file()) {
        std::vector<HostRange> ranges;
        const auto note = [&](const void* from, size_t bytes) -> Address {
            ranges.push_back({static_cast<const unsigned char*>(from), bytes});
            return 0;
        };
        fill(model, first_layer, [&](const auto& place) { place(note); });
        std::string reason;  // awqe_gpu says it
        if (InPlace::take(device, std::move(ranges), &in_place_, &reason)) {
            const auto find = [&](const void* from, size_t) { return in_place_.address(from); };
            fill(model, first_layer, [&](const auto& place) { place(find); });
            return;
        }
    }
    Upload upload(device, bytes(model, first_layer));
    fill(model, first_layer, [&](const auto& place) {
        Copied count;
        place(count);
        buffers_.emplace_back(device, count.used() + kReadBehind);
        Copied copy(upload, buffers_.back().address());
        place(copy);
    });
    upload.finish();
}

}  // namespace awqe::cuda
