// From a container's tensors to a decoder's weights; see model.h. Rule 11 of FORMAT.md section 4.
#include "native/runtime/model.h"

#include <cinttypes>
#include <cmath>
#include <string>
#include <utility>

#include "native/failure/failure.h"
#include "native/runtime/tensors.h"

namespace awqe {
namespace {

constexpr const char* kPositions = "position_embd.weight";
constexpr const char* kSlopes = "alibi.slopes";

// [tables, head_size / 2]; none beyond what the reduction of an angle can resolve (FORMAT.md says
// why).
const float* need_frequencies(const GgufFile& file, const Architecture& a) {
    constexpr const char* kName = "rope.inverse_frequencies";
    const uint64_t count = uint64_t{a.rope_table_count()} * (a.head_size / 2);
    const float* frequencies = need_vector(file, kName, count);
    const float most = std::fmax(1.0f, 0x1p22f / static_cast<float>(a.context_length));
    for (uint64_t i = 0; i < count; ++i) {
        if (std::fabs(frequencies[i]) > most) {
            fail(AWQE_FILE_INVALID,
                 "tensor %s holds %g at index %" PRIu64
                 "; with a context of %u the largest magnitude allowed is %g",
                 kName, static_cast<double>(frequencies[i]), i, a.context_length,
                 static_cast<double>(most));
        }
    }
    return frequencies;
}

// The tensors of norms: which of them have a bias is one question for all of the stream, and one
// for queries and keys. The first that is read answers it.
class Norms {
  public:
    Norms(const GgufFile& file, const Architecture& a, const std::string& first)
        : file_(file), first_(first), layer_(a.norm == NormKind::kLayer) {
        biased_ = layer_ && file.find_tensor(first + ".bias") != nullptr;
    }

    // `name` without ".weight" and ".bias".
    Norm need(const std::string& name, uint64_t size) const {
        const std::string bias = name + ".bias";
        if (!layer_) need_absent(file_, bias, "awq_edge.decoder.norm is rms");
        if (!biased_) need_absent(file_, bias, ("there is no " + first_ + ".bias").c_str());
        return {need_vector(file_, name + ".weight", size),
                biased_ ? need_vector(file_, bias, size) : nullptr};
    }

    // One that the keys say there is, or is not.
    Norm need_if(bool there, const std::string& name, uint64_t size, const char* reason) const {
        if (there) return need(name, size);
        need_absent(file_, name + ".weight", reason);
        need_absent(file_, name + ".bias", reason);
        return {nullptr, nullptr};
    }

  private:
    const GgufFile& file_;
    const std::string first_;
    const bool layer_;
    bool biased_;
};

FeedForward read_feed_forward(const GgufFile& file, const Architecture& a, const std::string& layer,
                              const char* key_prefix) {
    const std::string key = std::string(key_prefix) + "feed_forward";
    const std::string plain = key + " is plain", gated = key + " is gated";
    FeedForward w = {};
    w.up = need_linear(file, layer + "ffn_up", a.feed_forward_size, a.hidden_size);
    const std::string scales = layer + "ffn_act.scales";
    if (a.gated) {
        w.gate = need_linear(file, layer + "ffn_gate", a.feed_forward_size, a.hidden_size);
        need_equal_groups(layer, "ffn_gate", w.gate, "ffn_up", w.up);
        need_absent(file, scales, gated.c_str());
    } else {
        need_absent(file, layer + "ffn_gate.weight", plain.c_str());
        if (file.find_tensor(scales) != nullptr) {
            w.activation_scales = need_vector(file, scales, a.feed_forward_size);
        }
    }
    w.down = need_linear(file, layer + "ffn_down", a.hidden_size, a.feed_forward_size);
    return w;
}

// One expert; `name` ends with a dot. It has no biases.
FeedForward read_expert(const GgufFile& file, const std::string& name, uint32_t width,
                        uint32_t hidden) {
    for (const char* stem : {"ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"}) {
        need_absent(file, name + stem, "experts have no biases");
    }
    FeedForward w = {};
    w.gate.weight = need_matrix(file, name + "ffn_gate.weight", width, hidden);
    w.up.weight = need_matrix(file, name + "ffn_up.weight", width, hidden);
    w.down.weight = need_matrix(file, name + "ffn_down.weight", hidden, width);
    return w;
}

Experts read_experts(const GgufFile& file, const Architecture& a, const std::string& layer) {
    Experts w = {};
    // Routers are as large as small matrices: opening a file does not read them.
    w.router =
        need_floats(file, layer + "ffn_router.weight", uint64_t{a.experts} * a.hidden_size).floats;
    for (uint32_t e = 0; e < a.experts; ++e) {
        const std::string name = "expert." + std::to_string(e) + ".";
        w.all.push_back(read_expert(file, layer + name, a.expert_size, a.hidden_size));
        const FeedForward& first = w.all[0];
        const FeedForward& expert = w.all.back();
        const auto need_equal = [&](const char* first_name, const Linear& one, const char* stem,
                                    const Linear& other) {
            need_equal_groups(layer, first_name, one, (name + stem).c_str(), other);
        };
        need_equal("expert.0.ffn_gate", first.gate, "ffn_gate", expert.gate);
        need_equal("expert.0.ffn_gate", first.gate, "ffn_up", expert.up);
        need_equal("expert.0.ffn_down", first.down, "ffn_down", expert.down);
    }
    const std::string shared_router = layer + "shared_router.weight";
    if (a.shared_expert_size == 0) {
        need_absent(file, shared_router, "there is no awq_edge.decoder.shared_expert_size");
        return w;
    }
    w.shared = read_expert(file, layer + "shared.", a.shared_expert_size, a.hidden_size);
    for (const auto& [stem, linear] :
         {std::pair{"shared.ffn_gate", &w.shared.gate}, {"shared.ffn_up", &w.shared.up}}) {
        need_equal_groups(layer, "expert.0.ffn_gate", w.all[0].gate, stem, *linear);
    }
    if (file.find_tensor(shared_router) != nullptr) {
        w.shared_router = need_vector(file, shared_router, a.hidden_size);
    }
    return w;
}

LayerWeights read_layer(const GgufFile& file, const Architecture& a, const Norms& norms,
                        const Norms& qk_norms, uint32_t index) {
    constexpr const char* kPlaces = "awq_edge.decoder.norm_places says otherwise";
    const bool before = a.norm_places == NormPlaces::kBefore || a.norm_places == NormPlaces::kBoth;
    const bool behind = a.norm_places != NormPlaces::kBefore;
    const uint32_t hidden = a.hidden_size;
    const std::string layer = "blk." + std::to_string(index) + ".";
    LayerWeights w = {};
    w.attention_norm = norms.need_if(before, layer + "attn_norm", hidden, kPlaces);
    w.query = need_linear(file, layer + "attn_q", a.query_size(), hidden);
    w.key = need_linear(file, layer + "attn_k", a.key_size(), hidden);
    w.value = need_linear(file, layer + "attn_v", a.key_size(), hidden);
    need_equal_groups(layer, "attn_q", w.query, "attn_k", w.key);
    need_equal_groups(layer, "attn_q", w.query, "attn_v", w.value);
    const bool normed = a.qk_norm != QkNorm::kNone;
    const bool shared = a.qk_norm == QkNorm::kHead;
    constexpr const char* kNoQkNorm = "awq_edge.decoder.qk_norm is false";
    w.query_norm = qk_norms.need_if(normed, layer + "attn_q_norm",
                                    shared ? a.head_size : a.query_size(), kNoQkNorm);
    w.key_norm = qk_norms.need_if(normed, layer + "attn_k_norm",
                                  shared ? a.head_size : a.key_size(), kNoQkNorm);
    w.attention_output = need_linear(file, layer + "attn_output", hidden, a.query_size());
    w.attention_post_norm = norms.need_if(behind, layer + "attn_post_norm", hidden, kPlaces);
    w.feed_forward_norm = norms.need_if(before, layer + "ffn_norm", hidden, kPlaces);
    if (a.expert_layers[index] != 0) {
        w.experts = read_experts(file, a, layer);
    } else {
        w.feed_forward = read_feed_forward(file, a, layer, "awq_edge.decoder.");
    }
    w.feed_forward_post_norm = norms.need_if(behind, layer + "ffn_post_norm", hidden, kPlaces);
    return w;
}

// The gated block before a layer.
LayerWeights read_block(const GgufFile& file, const Architecture& form, uint32_t layer) {
    const std::string name = "blk." + std::to_string(layer) + ".cross_";
    const auto norm = [&](const char* stem) -> Norm {
        const std::string bias = name + stem + ".bias";
        const bool biased = form.norm == NormKind::kLayer;
        if (!biased) need_absent(file, bias, "awq_edge.cross.norm is rms");
        return {need_vector(file, name + stem + ".weight", form.hidden_size),
                biased ? need_vector(file, bias, form.hidden_size) : nullptr};
    };
    LayerWeights w = {};
    w.attention_norm = norm("attn_norm");
    w.query = need_linear(file, name + "attn_q", form.query_size(), form.hidden_size);
    if (form.qk_norm != QkNorm::kNone) {
        w.query_norm.weight = need_vector(file, name + "attn_q_norm.weight", form.head_size);
    } else {
        need_absent(file, name + "attn_q_norm.weight", "awq_edge.cross.qk_norm is false");
    }
    w.attention_output =
        need_linear(file, name + "attn_output", form.hidden_size, form.query_size());
    w.feed_forward_norm = norm("ffn_norm");
    w.feed_forward = read_feed_forward(file, form, name, "awq_edge.cross.");
    return w;
}

Linear read_head(const GgufFile& file, const Architecture& a, const PackedMatrix& embedding) {
    constexpr const char* kBias = "output.bias";
    Linear head = {};
    if (a.tied_head) {
        need_absent(file, "output.weight", "awq_edge.decoder.tied_head is true");
        head.weight = embedding;
    } else {
        head.weight = need_matrix(file, "output.weight", a.vocabulary_size, a.hidden_size);
    }
    if (file.find_tensor(kBias) != nullptr) head.bias = need_vector(file, kBias, a.vocabulary_size);
    return head;
}

uint64_t tensor_parameters(const Tensor& tensor) {
    return tensor.packed ? tensor.matrix.rows * tensor.matrix.columns : tensor.elements;
}

}  // namespace

std::vector<const Linear*> LayerWeights::linears() const {
    std::vector<const Linear*> all;
    for (const Linear* linear : {&query, &key, &value, &attention_output}) {
        if (linear->weight.rows > 0) all.push_back(linear);
    }
    const auto add = [&](const FeedForward& w) {
        for (const Linear* linear : {&w.gate, &w.up, &w.down}) {
            if (linear->weight.rows > 0) all.push_back(linear);
        }
    };
    add(feed_forward);
    for (const FeedForward& expert : experts.all) add(expert);
    add(experts.shared);
    return all;
}

Model::Model(const char* path) : Model(std::make_unique<MappedFile>(path), nullptr, 0) {}

Model::Model(const uint8_t* bytes, size_t size) : Model(nullptr, bytes, size) {}

Model::Model(std::unique_ptr<MappedFile> mapping, const uint8_t* bytes, size_t size)
    : mapping_(std::move(mapping)),
      file_(mapping_ ? mapping_->data() : bytes, mapping_ ? mapping_->size() : size),
      architecture_(read_architecture(file_)),
      learned_positions_(nullptr),
      inverse_frequencies_(nullptr),
      alibi_slopes_(nullptr) {
    const Architecture& a = architecture_;
    const bool behind_only =
        a.norm_places == NormPlaces::kAfter || a.norm_places == NormPlaces::kStream;
    const Norms norms(file_, a, behind_only ? "blk.0.attn_post_norm" : "blk.0.attn_norm");
    const Norms qk_norms(file_, a, "blk.0.attn_q_norm");
    embedding_ = need_matrix(file_, "token_embd.weight", a.vocabulary_size, a.hidden_size);
    embedding_norm_ = norms.need_if(a.embedding_norm, "token_embd_norm", a.hidden_size,
                                    "awq_edge.decoder.embedding_norm is false");
    head_ = read_head(file_, a, embedding_);
    output_norm_ = norms.need_if(a.final_norm, "output_norm", a.hidden_size,
                                 "awq_edge.decoder.final_norm is false");
    read_positions();
    for (uint32_t i = 0; i < a.layers; ++i) {
        layers_.push_back(read_layer(file_, a, norms, qk_norms, i));
    }
    cross_ = read_cross_architecture(file_, a);
    if (cross_) {
        for (const uint32_t layer : cross_->before) {
            blocks_.push_back(read_block(file_, cross_->form, layer));
        }
    }
    vision_ = read_vision(file_, a.hidden_size, cross());
    if (vision_ && vision_->taps.size() > a.layers) {
        fail(AWQE_FILE_INVALID, "awq_edge.vision.taps names %zu layers, and the decoder has %u",
             vision_->taps.size(), a.layers);
    }
    if (cross_ && !vision_) {
        fail(AWQE_FILE_INVALID,
             "there is a key awq_edge.cross.layers, although there is no awq_edge.vision.layers");
    }
    if (picture_rows() > 0 && a.position == PositionKind::kAlibi) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.bidirectional is true, although awq_edge.decoder.position is alibi: "
             "no distance is counted forwards");
    }
}

void Model::read_positions() {
    const Architecture& a = architecture_;
    constexpr const char* kReason = "awq_edge.decoder.position says otherwise";
    if (a.position == PositionKind::kRotary) {
        inverse_frequencies_ = need_frequencies(file_, a);
    } else {
        need_absent(file_, "rope.inverse_frequencies", kReason);
    }
    if (a.position == PositionKind::kAlibi) {
        alibi_slopes_ = need_vector(file_, kSlopes, a.heads);
    } else {
        need_absent(file_, kSlopes, kReason);
    }
    if (a.position == PositionKind::kLearned) {
        // Its rows are looked up one by one, like those of the embedding: opening reads none.
        learned_positions_ =
            need_floats(file_, kPositions, uint64_t{a.context_length} * a.hidden_size).floats;
    } else {
        need_absent(file_, kPositions, kReason);
    }
}

uint64_t Model::parameters() const {
    uint64_t total = 0;
    for (const Tensor& tensor : file_.tensors()) total += tensor_parameters(tensor);
    return total;
}

uint64_t Model::decode_bytes() const {
    uint64_t total = embedding_.block_bytes / kBlockRows;
    for (const Tensor& tensor : file_.tensors()) {
        if (vision_ && is_vision_tensor(tensor)) continue;  // a picture is encoded once
        const bool embedding = tensor.packed && tensor.matrix.blocks == embedding_.blocks;
        const bool positions = learned_positions_ != nullptr && tensor.floats == learned_positions_;
        if (positions) {
            total += architecture_.hidden_size * sizeof(float);  // one row of them
        } else if (!embedding || architecture_.tied_head) {
            total += tensor.bytes;
        }
    }
    // Every expert is as likely as the others, as far as anybody knows.
    uint64_t experts = 0;
    for (const LayerWeights& layer : layers_) {
        for (const FeedForward& expert : layer.experts.all) {
            for (const Linear* linear : {&expert.gate, &expert.up, &expert.down}) {
                experts += packed_bytes(linear->weight);
            }
        }
    }
    if (experts > 0) {
        total -= experts - experts * architecture_.experts_per_token / architecture_.experts;
    }
    return total;
}

void Model::expect_use() const {
    if (mapping_) mapping_->expect_use();
}

}  // namespace awqe
