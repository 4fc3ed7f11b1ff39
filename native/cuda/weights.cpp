// Copying weights to the GPU, a layer at a time; see weights.h.
#include "native/cuda/weights.h"

#include "native/failure/failure.h"

namespace awqe::cuda {
namespace {

size_t matrix_bytes(const PackedMatrix& w) {
    return (w.rows + kBlockRows - 1) / kBlockRows * w.block_bytes;
}

// Walks everything that lies together in one buffer, twice: to count it and to copy it. Each piece
// begins at a multiple of 256 bytes, as the driver's own allocations do.
class Placement {
  public:
    explicit Placement(const Device* device, Address base) : device_(device), base_(base) {}

    size_t used() const { return used_; }

    const float* vector(const float* from, size_t count) {
        if (from == nullptr) return nullptr;
        return reinterpret_cast<const float*>(place(from, count * sizeof(float)));
    }
    Matrix matrix(const PackedMatrix& w, const float* bias) {
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
        m.blocks = reinterpret_cast<const unsigned char*>(place(w.blocks, matrix_bytes(w)));
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
    Address place(const void* from, size_t bytes) {
        const Address at = base_ + used_;
        used_ += round_up(bytes, 256);
        if (device_ != nullptr) {
            check(device_->driver().cuMemcpyHtoD_v2(at, from, bytes), "copy the weights");
        }
        return at;
    }

    const Device* device_;  // NULL: only counts
    Address base_;
    size_t used_ = 0;
};

LayerAddresses place_layer(Placement& at, const Architecture& a, const LayerWeights& w) {
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

RestAddresses place_rest(Placement& at, const Model& model) {
    const Architecture& a = model.architecture();
    RestAddresses rest = {};
    rest.embedding_norm = at.norm(a, model.embedding_norm(), a.hidden_size);
    rest.learned_positions =
        at.vector(model.learned_positions(), size_t{a.context_length} * a.hidden_size);
    rest.output_norm = at.norm(a, model.output_norm(), a.hidden_size);
    rest.inverse_frequencies =
        at.vector(model.inverse_frequencies(), size_t{a.rope_table_count()} * (a.head_size / 2));
    rest.alibi_slopes = at.vector(model.alibi_slopes(), a.heads);
    if (a.tied_head) rest.tied_bias = at.vector(model.head().bias, a.vocabulary_size);
    return rest;
}

}  // namespace

uint64_t Weights::bytes(const Model& model) {
    const Architecture& a = model.architecture();
    uint64_t total = 0;
    for (const LayerWeights& w : model.layers()) {
        Placement count(nullptr, 0);
        place_layer(count, a, w);
        total += count.used();
    }
    Placement rest(nullptr, 0);
    place_rest(rest, model);
    rest.matrix(model.embedding(), nullptr);
    if (!a.tied_head) rest.linear(model.head());
    return total + rest.used();
}

Weights::Weights(std::shared_ptr<const Device> device, const Model& model) {
    const Architecture& a = model.architecture();
    const uint64_t needed = bytes(model);
    const size_t room = device->free_bytes();
    if (needed > room) {
        fail(AWQE_OUT_OF_MEMORY,
             "the model takes %.2f GB and the GPU %s has %.2f GB free: say --device cpu",
             static_cast<double>(needed) / 1e9, device->facts().name.c_str(),
             static_cast<double>(room) / 1e9);
    }
    const auto filled = [&](const auto& place) {
        Placement count(nullptr, 0);
        place(count);
        buffers_.emplace_back(device, count.used());
        Placement copy(device.get(), buffers_.back().address());
        place(copy);
    };
    filled([&](Placement& at) { embedding_ = at.matrix(model.embedding(), nullptr); });
    layers_.resize(model.layers().size());
    for (size_t i = 0; i < layers_.size(); ++i) {
        filled([&](Placement& at) { layers_[i] = place_layer(at, a, model.layers()[i]); });
    }
    RestAddresses rest = {};
    filled([&](Placement& at) { rest = place_rest(at, model); });
    embedding_norm_ = rest.embedding_norm;
    learned_positions_ = rest.learned_positions;
    output_norm_ = rest.output_norm;
    inverse_frequencies_ = rest.inverse_frequencies;
    alibi_slopes_ = rest.alibi_slopes;
    if (a.tied_head) {
        head_ = embedding_;
        head_.bias = rest.tied_bias;
    } else {
        filled([&](Placement& at) { head_ = at.linear(model.head()); });
    }
}

}  // namespace awqe::cuda
