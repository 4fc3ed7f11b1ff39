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
    // More rows than a block of text has.
    add("seen in both directions", [](Form& f) {
        f.image_size = 48, f.post_norm = true, f.connector_norm = "rms", f.bidirectional = true;
    });
    const auto turned = [](Form& f) {
        f.image_size = 96, f.rotary = true, f.patch_bias = false, f.post_norm = true;
        f.regroup = 2, f.mlp = f.connector_bias = true, f.heads = 2, f.head_size = 20;
    };
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
    if (form.rotary) file.set_text(vision + "position", "rotary");
    if (form.rms) file.set_text(vision + "norm", "rms");
    if (form.gated) file.set_text(vision + "feed_forward", "gated");
    if (form.window != 0) file.set_u32(vision + "window", form.window);
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
    file.set_text(vision + "connector", form.mlp ? "mlp" : "linear");
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
    const uint32_t columns = form.regroup * form.regroup * kVisionHidden;
    if (norm_of_connector != "none") vector("mm.norm.weight", columns, 1.0f, 0.25f);
    if (norm_of_connector == "layer") vector("mm.norm.bias", columns, 0.0f, 0.25f);
    matrix("mm.0", form.mlp ? kConnectorWidth : kEmbedding, columns, 8, form.connector_bias);
    if (form.mlp) matrix("mm.2", kEmbedding, kConnectorWidth, 4, form.connector_bias);
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
    add_vision(file, form);
    return file;
}

}  // namespace awqe::test
