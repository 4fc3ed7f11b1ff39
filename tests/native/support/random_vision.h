// Small decoders with a vision part of random weights: towers of every form with what stands behind
// them, matrices of every bit width, sizes that end inside a block, a group, a strip of rows and a
// chunk of attention.
#pragma once

#include <string>
#include <vector>

#include "tests/native/support/random_model.h"

namespace awqe::test {

struct VisionForm {
    const char* name = "";
    uint32_t image_size = 39;
    uint32_t patch_size = 4;  // three pixels are left over
    uint32_t heads = 3;
    uint32_t head_size = 9;
    const char* activation = "gelu_tanh";
    bool class_token = false;
    bool pre_norm = false;
    bool post_norm = false;
    bool patch_bias = true;
    uint32_t pool = 1;
    uint32_t regroup = 1;
    bool by_columns = false;
    const char* connector_norm = "none";
    bool mlp = false;
    const char* connector_activation = "gelu";
    bool connector_bias = false;
    bool newline = false;
    bool bidirectional = false;
    bool rotary = false;
    bool rms = false;
    bool gated = false;
    uint32_t window = 0;
    std::vector<uint32_t> full_layers = {};
    uint32_t position_grid = 0;
    std::vector<uint32_t> taps = {};
    bool interleaved = false;
    // For a decoder that looks at pictures:
    std::vector<uint32_t> blocks = {};  // per layer, 1 if a gated block stands before it; or none
    bool keep_class = false;
    bool resampler = false;
    bool qk_norm = false;  // of the blocks, and of the resampler
    const char* block_norm = "rms";
    bool plain_block = false;
    const char* block_activation = "silu";
};

constexpr uint32_t kVisionHidden = 40;
constexpr uint32_t kVisionWidth = 52;
constexpr uint32_t kConnectorWidth = 44;
constexpr uint32_t kEmbedding = 36;  // of random_model()

inline std::vector<VisionForm> vision_forms() {
    std::vector<VisionForm> forms;
    const auto add = [&](const char* name, auto change) {
        VisionForm form;
        form.name = name;
        change(form);
        forms.push_back(form);
    };
    using Form = VisionForm;
    // 65 rows: the last strip is a single one.
    add("a class token and two matrices", [](Form& f) {
        f.image_size = 33, f.activation = "quick_gelu", f.class_token = f.pre_norm = true;
        f.patch_bias = false, f.mlp = f.connector_bias = true, f.newline = true;
    });
    add("pixels regrouped", [](Form& f) {
        f.image_size = 48, f.post_norm = true, f.regroup = 3;
        f.heads = 2, f.head_size = 20;
    });
    add("an average and an RMS norm", [](Form& f) {
        f.image_size = 40, f.post_norm = true, f.pool = 2, f.connector_norm = "rms";
    });
    add("regrouped over the edge, a layer norm", [](Form& f) {
        f.activation = "gelu", f.regroup = 2, f.connector_norm = "layer", f.mlp = true;
        f.connector_bias = true, f.connector_activation = "silu";
    });
    add("an average of nine, regrouped", [](Form& f) {
        f.activation = "relu", f.pool = 3, f.regroup = 2, f.head_size = 64, f.heads = 1;
    });
    // 64 patches and a class token, of which a resampler makes 6 rows: more than a chunk of keys.
    add("gated blocks, a resampler", [](Form& f) {
        f.image_size = 33, f.class_token = f.pre_norm = f.keep_class = f.resampler = true;
        f.patch_bias = false, f.activation = "gelu", f.blocks = {1, 0};
    });
    add("gated blocks with norms of queries and keys", [](Form& f) {
        f.class_token = f.keep_class = f.resampler = f.qk_norm = true, f.blocks = {1, 1};
    });
    add("plain gated blocks with layer norms", [](Form& f) {
        f.class_token = f.resampler = true, f.blocks = {0, 1}, f.block_norm = "layer";
        f.plain_block = true, f.block_activation = "gelu", f.activation = "quick_gelu";
    });
    add("gated blocks that see the tower's own rows", [](Form& f) {
        f.image_size = 48, f.class_token = true, f.blocks = {0, 1}, f.block_activation = "relu";
    });
    // More rows than a block of text has.
    add("seen in both directions", [](Form& f) {
        f.image_size = 48, f.post_norm = true, f.connector_norm = "rms", f.bidirectional = true;
    });
    add("regrouped column by column", [](Form& f) {
        f.regroup = 2, f.by_columns = true, f.connector_norm = "layer";
        f.mlp = f.connector_bias = true;
    });
    const auto turned = [](Form& f) {
        f.image_size = 96, f.rotary = true, f.patch_bias = false, f.post_norm = true;
        f.regroup = 2, f.mlp = f.connector_bias = true, f.heads = 2, f.head_size = 20;
    };
    // One tap behind each layer, and the decoder has as many.
    add("turned, positions of a table, taps", [&](Form& f) {
        turned(f);
        f.patch_bias = f.interleaved = true, f.position_grid = 5, f.taps = {0, 1};
    });
    add("turned by row and column", [&](Form& f) {
        turned(f);
        f.activation = "quick_gelu";
    });
    add("windows, RMS norms and a gate", [&](Form& f) {
        turned(f);
        f.activation = "silu", f.rms = f.gated = true, f.window = 4, f.full_layers = {1};
    });
    return forms;
}

// The widths of a gated block differ from a layer's, to both sides.
constexpr uint32_t kBlockHeads = 3, kBlockHeadSize = 10, kBlockWidth = 28;
constexpr uint32_t kLatents = 6, kResamplerHeads = 2, kResamplerHeadSize = 11;

// The keys and tensors of gated blocks and of what gives them pictures.
inline void add_blocks(FileSpec& file, const VisionForm& form) {
    Random random(3);
    const std::string cross = "awq_edge.cross.", resampler = "awq_edge.vision.resampler.";
    const auto vector = [&](const std::string& name, size_t size, float middle) {
        std::vector<float> values(size);
        for (float& v : values) v = middle + random.real(0.25f);
        file.set_floats(name, values);
    };
    const auto norm = [&](const std::string& name, size_t size, bool biased) {
        vector(name + ".weight", size, 1.0f);
        if (biased) vector(name + ".bias", size, 0.0f);
    };
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns,
                            uint32_t bits) {
        set_random_matrix(file, name + ".weight", rows, columns, bits, random);
    };
    file.set(cross + "layers", kList, u32_array(form.blocks));
    file.set_u32(cross + "heads", kBlockHeads);
    file.set_u32(cross + "head_size", kBlockHeadSize);
    file.set_u32(cross + "feed_forward_size", kBlockWidth);
    file.set_text(cross + "norm", form.block_norm);
    file.set(cross + "norm_epsilon", kF32, bytes_of(1e-4f));
    file.set_text(cross + "feed_forward", form.plain_block ? "plain" : "gated");
    file.set_text(cross + "activation", form.block_activation);
    if (form.qk_norm) file.set(cross + "qk_norm", kBoolean, {1});
    if (form.keep_class) file.set("awq_edge.vision.keep_class", kBoolean, {1});
    constexpr uint32_t kSize = kBlockHeads * kBlockHeadSize;
    const bool biased = std::string(form.block_norm) == "layer";
    for (size_t layer = 0; layer < form.blocks.size(); ++layer) {
        if (form.blocks[layer] == 0) continue;
        const std::string block = "blk." + std::to_string(layer) + ".cross_";
        norm(block + "attn_norm", kEmbedding, biased);
        matrix(block + "attn_q", kSize, kEmbedding, 4);
        if (form.qk_norm) norm(block + "attn_q_norm", kBlockHeadSize, false);
        matrix(block + "attn_output", kEmbedding, kSize, 3);
        norm(block + "ffn_norm", kEmbedding, biased);
        if (!form.plain_block) matrix(block + "ffn_gate", kBlockWidth, kEmbedding, 4);
        matrix(block + "ffn_up", kBlockWidth, kEmbedding, 8);
        matrix(block + "ffn_down", kEmbedding, kBlockWidth, 5);
        const std::string seen = "mm.blk." + std::to_string(layer) + ".";
        matrix(seen + "k", kSize, kVisionHidden, 8);
        matrix(seen + "v", kSize, kVisionHidden, 6);
        if (form.qk_norm) norm(seen + "k_norm", kBlockHeadSize, false);
    }
    if (!form.resampler) return;
    file.set_u32(resampler + "layers", 2);
    file.set_u32(resampler + "rows", kLatents);
    file.set_u32(resampler + "heads", kResamplerHeads);
    file.set_u32(resampler + "head_size", kResamplerHeadSize);
    file.set_u32(resampler + "feed_forward_size", 60);
    file.set_text(resampler + "activation", "relu");
    file.set(resampler + "norm_epsilon", kF32, bytes_of(1e-5f));
    if (form.qk_norm) file.set(resampler + "qk_norm", kBoolean, {1});
    vector("v.resampler.latents", size_t{kLatents} * kVisionHidden, 0.0f);
    constexpr uint32_t kQueries = kResamplerHeads * kResamplerHeadSize;
    for (int layer = 0; layer < 2; ++layer) {
        const std::string name = "v.resampler." + std::to_string(layer) + ".";
        norm(name + "ln_rows", kVisionHidden, true);
        norm(name + "ln1", kVisionHidden, true);
        for (const char* stem : {"attn_q", "attn_k", "attn_v"}) {
            matrix(name + stem, kQueries, kVisionHidden, layer == 0 ? 8 : 4);
        }
        if (form.qk_norm) {
            norm(name + "attn_q_norm", kResamplerHeadSize, true);
            norm(name + "attn_k_norm", kResamplerHeadSize, true);
        }
        matrix(name + "attn_out", kVisionHidden, kQueries, 6);
        norm(name + "ln2", kVisionHidden, true);
        matrix(name + "ffn_up", 60, kVisionHidden, 8);
        matrix(name + "ffn_down", kVisionHidden, 60, 3);
    }
    norm("v.resampler.post_ln", kVisionHidden, true);
}

inline void add_vision(FileSpec& file, const VisionForm& form = {}) {
    Random random(2);
    const VisionForm defaults;
    const std::string vision = "awq_edge.vision.";
    const auto flag = [&](const char* key, bool value) {
        if (value) file.set(vision + key, kBoolean, {1});
    };
    file.set_u32(vision + "layers", 2);
    file.set_u32(vision + "hidden_size", kVisionHidden);
    file.set_u32(vision + "heads", form.heads);
    file.set_u32(vision + "head_size", form.head_size);
    file.set_u32(vision + "feed_forward_size", kVisionWidth);
    file.set_u32(vision + "image_size", form.image_size);
    file.set_u32(vision + "patch_size", form.patch_size);
    file.set(vision + "norm_epsilon", kF32, bytes_of(1e-6f));
    file.set_text(vision + "activation", form.activation);
    flag("class_token", form.class_token);
    flag("pre_norm", form.pre_norm);
    flag("post_norm", form.post_norm);
    flag("bidirectional", form.bidirectional);
    flag("by_columns", form.by_columns);
    if (form.rotary) file.set_text(vision + "position", "rotary");
    if (form.rms) file.set_text(vision + "norm", "rms");
    if (form.gated) file.set_text(vision + "feed_forward", "gated");
    if (form.window != 0) file.set_u32(vision + "window", form.window);
    if (form.position_grid != 0) file.set_u32(vision + "position_grid", form.position_grid);
    if (!form.taps.empty()) file.set(vision + "taps", kList, u32_array(form.taps));
    if (!form.full_layers.empty()) {
        file.set(vision + "full_layers", kList, u32_array(form.full_layers));
    }
    if (form.pool != 1) file.set_u32(vision + "pool", form.pool);
    if (form.regroup != 1) file.set_u32(vision + "regroup", form.regroup);
    const std::string norm_of_connector = form.connector_norm;
    if (norm_of_connector != "none") {
        file.set_text(vision + "connector_norm", norm_of_connector);
        file.set(vision + "connector_norm_epsilon", kF32, bytes_of(1e-5f));
    }
    const bool for_blocks = !form.blocks.empty();
    file.set_text(vision + "connector", for_blocks ? "cross" : form.mlp ? "mlp" : "linear");
    if (form.mlp) {
        file.set_u32(vision + "connector_size", kConnectorWidth);
        if (std::string(form.connector_activation) != defaults.connector_activation) {
            file.set_text(vision + "connector_activation", form.connector_activation);
        }
    }
    const auto vector = [&](const std::string& name, size_t size, float middle, float around) {
        std::vector<float> values(size);
        for (float& v : values) v = middle + random.real(around);
        file.set_floats(name, values);
    };
    const auto norm = [&](const std::string& name) {
        vector(name + ".weight", kVisionHidden, 1.0f, 0.25f);
        if (!form.rms) vector(name + ".bias", kVisionHidden, 0.0f, 0.25f);
    };
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns, uint32_t bits,
                            bool biased) {
        set_random_matrix(file, name + ".weight", rows, columns, bits, random);
        if (biased) vector(name + ".bias", rows, 0.0f, 0.25f);
    };
    std::vector<float> pixel_values(3 * 256);
    for (size_t c = 0; c < 3; ++c) {
        for (size_t u = 0; u < 256; ++u) {
            const float shade = static_cast<float>(u) / 255.0f;
            pixel_values[c * 256 + u] = (shade - 0.4f - 0.05f * static_cast<float>(c)) / 0.27f;
        }
    }
    file.set_floats("v.pixel_values", pixel_values);
    const uint32_t patch_columns = 3 * form.patch_size * form.patch_size;
    matrix("v.patch_embd", kVisionHidden, patch_columns, 8, form.patch_bias);
    if (form.class_token) vector("v.class_embd", kVisionHidden, 0.0f, 0.5f);
    const uint32_t grid = form.image_size / form.patch_size;
    const uint32_t rows = grid * grid + (form.class_token ? 1 : 0);
    if (form.rotary) {
        vector("v.rope.inverse_frequencies", form.head_size / 4, 0.5f, 0.5f);
        const size_t squares = size_t{form.position_grid} * form.position_grid;
        if (squares != 0) vector("v.position_embd.weight", squares * kVisionHidden, 0.0f, 0.5f);
    } else {
        vector("v.position_embd.weight", size_t{rows} * kVisionHidden, 0.0f, 0.5f);
    }
    if (form.pre_norm) norm("v.pre_ln");
    constexpr uint32_t kWidths[2][6] = {{4, 3, 8, 6, 5, 8}, {8, 4, 2, 3, 8, 6}};
    const uint32_t query_size = form.heads * form.head_size;
    for (int layer = 0; layer < 2; ++layer) {
        const std::string name = "v.blk." + std::to_string(layer) + ".";
        const uint32_t* const b = kWidths[layer];
        norm(name + "ln1");
        matrix(name + "attn_q", query_size, kVisionHidden, b[0], true);
        matrix(name + "attn_k", query_size, kVisionHidden, b[1], layer == 0);
        matrix(name + "attn_v", query_size, kVisionHidden, b[2], true);
        matrix(name + "attn_out", kVisionHidden, query_size, b[3], true);
        norm(name + "ln2");
        if (form.gated) matrix(name + "ffn_gate", kVisionWidth, kVisionHidden, b[5], true);
        matrix(name + "ffn_up", kVisionWidth, kVisionHidden, b[4], true);
        matrix(name + "ffn_down", kVisionHidden, kVisionWidth, b[5], layer == 1);
    }
    if (form.post_norm) norm("v.post_ln");
    if (for_blocks) {
        add_blocks(file, form);
        return;
    }
    const uint32_t columns = form.regroup * form.regroup * kVisionHidden;
    if (norm_of_connector != "none") vector("mm.norm.weight", columns, 1.0f, 0.25f);
    if (norm_of_connector == "layer") vector("mm.norm.bias", columns, 0.0f, 0.25f);
    matrix("mm.0", form.mlp ? kConnectorWidth : kEmbedding, columns, 8, form.connector_bias);
    if (form.mlp) matrix("mm.2", kEmbedding, kConnectorWidth, 4, form.connector_bias);
    for (size_t i = 0; i < form.taps.size(); ++i) {
        const std::string tap = "mm.tap." + std::to_string(i) + ".";
        vector(tap + "norm.weight", columns, 1.0f, 0.25f);
        vector(tap + "norm.bias", columns, 0.0f, 0.25f);
        matrix(tap + "0", kConnectorWidth, columns, 6, form.connector_bias);
        matrix(tap + "2", kEmbedding, kConnectorWidth, 8, form.connector_bias);
    }
    if (form.newline) vector("mm.image_newline", kEmbedding, 0.0f, 0.5f);
}

inline FileSpec random_vision_model(const VisionForm& form = {}) {
    ModelForm decoder;
    decoder.qk_norm = false;
    decoder.context_length = 160;
    FileSpec file = random_model(decoder);
    if (form.rotary) {  // what turns a picture's patches turns its rows in the decoder
        file.set("awq_edge.decoder.rope_sections", kList, u32_array({1, 1, 1}));
    }
    if (form.interleaved) file.set("awq_edge.decoder.rope_interleaved", kBoolean, {1});
    add_vision(file, form);
    return file;
}

}  // namespace awqe::test
