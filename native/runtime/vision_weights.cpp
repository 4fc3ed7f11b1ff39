// From a container's tensors to a vision part's weights; see vision_weights.h.
#include "native/runtime/vision_weights.h"

#include <cmath>
#include <string>

#include "native/failure/failure.h"

namespace awqe {
namespace {

// A norm of the tower, of either kind; `name` without ".weight" and ".bias".
Norm need_tower_norm(const GgufFile& file, const VisionArchitecture& a, const std::string& name) {
    if (a.rms) {
        need_absent(file, name + ".bias", "awq_edge.vision.norm is rms");
        return {need_vector(file, name + ".weight", a.hidden_size), nullptr};
    }
    return {need_vector(file, name + ".weight", a.hidden_size),
            need_vector(file, name + ".bias", a.hidden_size)};
}

Norm tower_norm_if(const GgufFile& file, const VisionArchitecture& a, bool there,
                   const std::string& name, const char* reason) {
    if (there) return need_tower_norm(file, a, name);
    need_absent(file, name + ".weight", reason);
    need_absent(file, name + ".bias", reason);
    return {};
}

// `name` without ".weight" and ".bias".
Norm need_layer_norm(const GgufFile& file, const std::string& name, uint64_t size) {
    return {need_vector(file, name + ".weight", size), need_vector(file, name + ".bias", size)};
}

// One that a key says there is, or is not.
Norm layer_norm_if(const GgufFile& file, bool there, const std::string& name, uint64_t size,
                   const char* reason) {
    if (there) return need_layer_norm(file, name, size);
    need_absent(file, name + ".weight", reason);
    need_absent(file, name + ".bias", reason);
    return {};
}

VisionLayer read_layer(const GgufFile& file, const VisionArchitecture& a, uint32_t index) {
    const std::string layer = "v.blk." + std::to_string(index) + ".";
    VisionLayer w = {};
    w.attention_norm = need_tower_norm(file, a, layer + "ln1");
    w.query = need_linear(file, layer + "attn_q", a.query_size(), a.hidden_size);
    w.key = need_linear(file, layer + "attn_k", a.query_size(), a.hidden_size);
    w.value = need_linear(file, layer + "attn_v", a.query_size(), a.hidden_size);
    need_equal_groups(layer, "attn_q", w.query, "attn_k", w.key);
    need_equal_groups(layer, "attn_q", w.query, "attn_v", w.value);
    w.attention_output = need_linear(file, layer + "attn_out", a.hidden_size, a.query_size());
    w.feed_forward_norm = need_tower_norm(file, a, layer + "ln2");
    if (a.gated) {
        w.gate = need_linear(file, layer + "ffn_gate", a.feed_forward_size, a.hidden_size);
    } else {
        need_absent(file, layer + "ffn_gate.weight", "awq_edge.vision.feed_forward is plain");
    }
    w.up = need_linear(file, layer + "ffn_up", a.feed_forward_size, a.hidden_size);
    if (a.gated) need_equal_groups(layer, "ffn_gate", w.gate, "ffn_up", w.up);
    w.down = need_linear(file, layer + "ffn_down", a.hidden_size, a.feed_forward_size);
    return w;
}

void read_positions(const GgufFile& file, VisionModel& w) {
    const VisionArchitecture& a = w.architecture;
    constexpr const char* kTable = "v.position_embd.weight";
    constexpr const char* kFrequencies = "v.rope.inverse_frequencies";
    if (!a.rotary) {
        need_absent(file, kFrequencies, "awq_edge.vision.position is learned");
        // As large as a matrix: opening a file does not read it, as it reads no weights.
        w.positions = need_floats(file, kTable, uint64_t{a.rows()} * a.hidden_size).floats;
        return;
    }
    if (a.position_grid == 0) {
        need_absent(file, kTable, "there is no awq_edge.vision.position_grid");
    } else {
        const uint64_t squares = uint64_t{a.position_grid} * a.position_grid;
        w.positions = need_floats(file, kTable, squares * a.hidden_size).floats;
    }
    w.frequencies = need_vector(file, kFrequencies, a.head_size / 4);
    for (uint32_t i = 0; i < a.head_size / 4; ++i) {
        if (std::fabs(w.frequencies[i]) <= 1.0f) continue;
        fail(AWQE_FILE_INVALID, "tensor %s holds %g at index %u; the largest magnitude is 1",
             kFrequencies, static_cast<double>(w.frequencies[i]), i);
    }
}

// The norm of a head, of queries or of keys.
Norm head_norm_if(const GgufFile& file, const ResamplerArchitecture& r, const std::string& name) {
    return layer_norm_if(file, r.qk_norm, name, r.head_size,
                         "awq_edge.vision.resampler.qk_norm is false");
}

VisionLayer read_resampler_layer(const GgufFile& file, uint32_t hidden,
                                 const ResamplerArchitecture& r, uint32_t index) {
    const std::string layer = "v.resampler." + std::to_string(index) + ".";
    VisionLayer w = {};
    w.tower_norm = need_layer_norm(file, layer + "ln_rows", hidden);
    w.attention_norm = need_layer_norm(file, layer + "ln1", hidden);
    w.query = need_linear(file, layer + "attn_q", r.query_size(), hidden);
    w.key = need_linear(file, layer + "attn_k", r.query_size(), hidden);
    w.value = need_linear(file, layer + "attn_v", r.query_size(), hidden);
    need_equal_groups(layer, "attn_k", w.key, "attn_v", w.value);
    w.query_norm = head_norm_if(file, r, layer + "attn_q_norm");
    w.key_norm = head_norm_if(file, r, layer + "attn_k_norm");
    w.attention_output = need_linear(file, layer + "attn_out", hidden, r.query_size());
    w.feed_forward_norm = need_layer_norm(file, layer + "ln2", hidden);
    w.up = need_linear(file, layer + "ffn_up", r.feed_forward_size, hidden);
    w.down = need_linear(file, layer + "ffn_down", hidden, r.feed_forward_size);
    return w;
}

void read_resampler(const GgufFile& file, VisionModel& w) {
    const uint32_t hidden = w.architecture.hidden_size;
    const std::optional<ResamplerArchitecture>& r = w.architecture.resampler;
    constexpr const char* kLatents = "v.resampler.latents";
    if (!r) {
        need_absent(file, kLatents, "there is no awq_edge.vision.resampler.layers");
        return;
    }
    w.latents = need_vector(file, kLatents, uint64_t{r->rows} * hidden);
    for (uint32_t i = 0; i < r->layers; ++i) {
        w.resampler.push_back(read_resampler_layer(file, hidden, *r, i));
    }
    w.resampler_norm = need_layer_norm(file, "v.resampler.post_ln", hidden);
}

// Keys and values of every gated block, all of one input.
void read_blocks(const GgufFile& file, const CrossArchitecture& cross, VisionModel& w) {
    const Architecture& form = cross.form;
    w.block_form = form;
    const uint32_t hidden = w.architecture.hidden_size;
    need_absent(file, "mm.0.weight", "awq_edge.vision.connector is cross");
    for (const uint32_t layer : cross.before) {
        const std::string name = "mm.blk." + std::to_string(layer) + ".";
        SeenBlock block = {};
        block.key = need_linear(file, name + "k", form.query_size(), hidden);
        block.value = need_linear(file, name + "v", form.query_size(), hidden);
        const Linear& first = w.blocks.empty() ? block.key : w.blocks[0].key;
        const std::string first_name = "mm.blk." + std::to_string(cross.before[0]) + ".k";
        need_equal_groups(name, "k", block.key, "v", block.value);
        need_equal_groups("", (name + "k").c_str(), block.key, first_name.c_str(), first);
        const std::string norm = name + "k_norm.weight";
        if (form.qk_norm != QkNorm::kNone) {
            block.key_norm.weight = need_vector(file, norm, form.head_size);
        } else {
            need_absent(file, norm, "awq_edge.cross.qk_norm is false");
        }
        w.blocks.push_back(block);
    }
}

void read_taps(const GgufFile& file, uint32_t decoder_size, VisionModel& w) {
    const VisionArchitecture& a = w.architecture;
    for (size_t i = 0; i < a.taps.size(); ++i) {
        const std::string tap = "mm.tap." + std::to_string(i) + ".";
        w.taps.push_back({need_layer_norm(file, tap + "norm", a.connector_columns()),
                          need_linear(file, tap + "0", a.connector_size, a.connector_columns()),
                          need_linear(file, tap + "2", decoder_size, a.connector_size)});
    }
    w.embedding_size *= static_cast<uint32_t>(1 + a.taps.size());
}

void read_connector(const GgufFile& file, VisionModel& w) {
    const VisionArchitecture& a = w.architecture;
    const uint32_t columns = a.connector_columns();
    if (a.connector_norm == ConnectorNorm::kRms) {
        need_absent(file, "mm.norm.bias", "awq_edge.vision.connector_norm is rms");
        w.connector_norm = {need_vector(file, "mm.norm.weight", columns), nullptr};
    } else {
        w.connector_norm = layer_norm_if(file, a.connector_norm == ConnectorNorm::kLayer, "mm.norm",
                                         columns, "awq_edge.vision.connector_norm is none");
    }
    const bool two = a.connector_size != 0;
    w.connector = need_linear(file, "mm.0", two ? a.connector_size : w.embedding_size, columns);
    if (two) {
        w.connector_output = need_linear(file, "mm.2", w.embedding_size, a.connector_size);
    } else {
        need_absent(file, "mm.2.weight", "awq_edge.vision.connector is linear");
        need_absent(file, "mm.2.bias", "awq_edge.vision.connector is linear");
    }
    constexpr const char* kNewline = "mm.image_newline";
    if (file.find_tensor(kNewline) != nullptr) {
        w.newline = need_vector(file, kNewline, w.embedding_size);
    }
}

}  // namespace

std::vector<const Linear*> VisionModel::linears() const {
    std::vector<const Linear*> all = {&patches};
    for (const std::vector<VisionLayer>* some : {&layers, &resampler}) {
        for (const VisionLayer& w : *some) {
            for (const Linear* linear :
                 {&w.query, &w.key, &w.value, &w.attention_output, &w.gate, &w.up, &w.down}) {
                if (linear->weight.rows > 0) all.push_back(linear);
            }
        }
    }
    for (const SeenBlock& block : blocks) {
        all.push_back(&block.key);
        all.push_back(&block.value);
    }
    if (connector.weight.rows > 0) all.push_back(&connector);
    if (connector_output.weight.rows > 0) all.push_back(&connector_output);
    for (const VisionTap& tap : taps) {
        all.push_back(&tap.first);
        all.push_back(&tap.second);
    }
    return all;
}

std::optional<VisionModel> read_vision(const GgufFile& file, uint32_t hidden_size,
                                       const CrossArchitecture* cross) {
    const std::optional<VisionArchitecture> found = read_vision_architecture(file);
    if (!found) return std::nullopt;
    const VisionArchitecture& a = *found;
    VisionModel w = {};
    w.architecture = a;
    if (a.for_blocks != (cross != nullptr)) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.connector is %s, although there is %s awq_edge.cross.layers",
             a.for_blocks ? "cross" : "not cross", a.for_blocks ? "no" : "an");
    }
    w.embedding_size = cross == nullptr ? hidden_size : static_cast<uint32_t>(cross->row_size());
    w.pixel_values = need_vector(file, "v.pixel_values", 3 * 256);
    w.patches = need_linear(file, "v.patch_embd", a.hidden_size, a.patch_columns());
    constexpr const char* kClass = "v.class_embd";
    if (a.class_token) {
        w.class_token = need_vector(file, kClass, a.hidden_size);
    } else {
        need_absent(file, kClass, "awq_edge.vision.class_token is false");
    }
    read_positions(file, w);
    w.pre_norm =
        tower_norm_if(file, a, a.pre_norm, "v.pre_ln", "awq_edge.vision.pre_norm is false");
    for (uint32_t i = 0; i < a.layers; ++i) w.layers.push_back(read_layer(file, a, i));
    w.post_norm =
        tower_norm_if(file, a, a.post_norm, "v.post_ln", "awq_edge.vision.post_norm is false");
    read_resampler(file, w);
    if (a.for_blocks) {
        read_blocks(file, *cross, w);
    } else {
        read_connector(file, w);
        read_taps(file, hidden_size, w);
    }
    return w;
}

bool is_vision_tensor(const Tensor& tensor) {
    return tensor.name.rfind("v.", 0) == 0 || tensor.name.rfind("mm.", 0) == 0;
}

}  // namespace awqe
