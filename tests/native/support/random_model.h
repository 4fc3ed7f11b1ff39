// Small decoders with random weights that compute something: two layers with biases and a sliding
// window, matrices of every bit width, rows and columns that end inside a block and inside a group;
// norms, positions and feed-forwards of every form. The base of damaged files.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "native/format/layouts.h"
#include "tests/native/support/model_bytes.h"
#include "tests/native/support/random.h"

namespace awqe::test {

// Rows of a matrix begin behind the header that describes it (FORMAT.md, section 2).
constexpr size_t kMatrixHeaderBytes = 64;

// A matrix of `file` with random codes, zero-points and scales.
inline void set_random_matrix(FileSpec& file, const std::string& name, uint64_t rows,
                              uint64_t columns, uint32_t bits, Random& random) {
    file.set_matrix(name, rows, columns, bits);
    Bytes& data = file.tensor(name).data;
    const PackedMatrix w = packed_matrix_layout(rows, columns, bits, 32);
    for (uint64_t block = 0; block < (rows + 3) / 4; ++block) {
        uint8_t* const begin = data.data() + kMatrixHeaderBytes + block * w.block_bytes;
        for (uint64_t i = 0; i < w.groups * 4; ++i) {
            // Halves of 2^-6 to 2^-4 over the codes' range: outputs of ordinary size.
            const auto scale =
                static_cast<uint16_t>((bits == 8 ? 0x1000 : 0x2400) + random.integer(0, 0x7ff));
            std::memcpy(begin + 2 * i, &scale, sizeof(scale));
            begin[w.zero_points_offset + i] =
                static_cast<uint8_t>(1 << (bits - 1));  // codes lie around it
        }
        for (uint64_t i = w.codes_offset; i < w.block_bytes; ++i) {
            begin[i] = static_cast<uint8_t>(random.bits());
        }
    }
}

// What a random model has; the default is that of the kept damaged files, whose bytes it fixes.
struct ModelForm {
    const char* name = "";
    uint32_t heads = 2;
    uint32_t kv_heads = 1;
    uint32_t context_length = 16;
    const char* norm = "rms";
    bool norm_bias = false;
    const char* norm_places = "before";
    bool final_norm = true;
    bool embedding_norm = false;
    bool parallel = false;
    const char* position = "rotary";
    std::vector<uint32_t> rope_tables = {};
    bool qk_norm = true;
    const char* qk_norm_kind = "head";
    bool qk_norm_bias = false;
    float qkv_clamp = 0;
    float score_cap = 0;
    float logit_cap = 0;
    bool plain = false;
    const char* activation = "silu";
    bool activation_scales = false;
    bool head_bias = false;
    uint32_t experts = 0;
    uint32_t experts_per_token = 2;
    const char* routing = "softmax";
    float router_epsilon = 0;
    std::vector<uint32_t> expert_layers = {};
    bool shared_expert = false;
    bool shared_router = false;
    bool more_widths = false;  // 5 and 6 bits too
};

// The forms of layers that go beyond Llama's, one operation after the other; caps and limits are
// so small that they bite.
inline std::vector<ModelForm> model_forms() {
    std::vector<ModelForm> forms;
    const auto add = [&](const char* name, auto change) {
        ModelForm form;
        form.name = name;
        form.heads = 10;  // five queries for a key: four together and one alone
        form.kv_heads = 2;
        form.context_length = 160;
        form.qk_norm = false;
        change(form);
        forms.push_back(form);
    };
    using Form = ModelForm;
    add("layer norms", [](Form& f) { f.norm = "layer"; });
    add("layer norms with biases", [](Form& f) { f.norm = "layer", f.norm_bias = true; });
    add("norms behind the branches", [](Form& f) { f.norm_places = "after"; });
    add("norms around the branches", [](Form& f) { f.norm_places = "both"; });
    add("norms of the stream", [](Form& f) {
        f.norm = "layer", f.norm_bias = true, f.norm_places = "stream", f.final_norm = false;
    });
    add("no final norm", [](Form& f) { f.final_norm = false; });
    add("a norm of the embedding", [](Form& f) { f.embedding_norm = true; });
    add("parallel branches", [](Form& f) { f.parallel = true; });
    add("learned positions", [](Form& f) { f.position = "learned"; });
    add("ALiBi", [](Form& f) { f.position = "alibi"; });
    add("two rotary tables", [](Form& f) { f.rope_tables = {1, 0}; });
    add("q/k layer norms with biases",
        [](Form& f) { f.norm = "layer", f.norm_bias = f.qk_norm = f.qk_norm_bias = true; });
    add("q/k norms with weights of each head",
        [](Form& f) { f.qk_norm = true, f.qk_norm_kind = "heads"; });
    add("q/k norms over the width", [](Form& f) { f.qk_norm = true, f.qk_norm_kind = "width"; });
    add("limits of q, k, v", [](Form& f) { f.qkv_clamp = 0.5f; });
    add("a cap of scores", [](Form& f) { f.score_cap = 0.75f; });
    add("a cap of logits", [](Form& f) { f.logit_cap = 1.5f; });
    add("plain ReLU", [](Form& f) { f.plain = true, f.activation = "relu"; });
    add("plain GELU with scales",
        [](Form& f) { f.plain = f.activation_scales = true, f.activation = "gelu"; });
    add("plain GELU by tanh", [](Form& f) { f.plain = true, f.activation = "gelu_tanh"; });
    add("plain SiLU", [](Form& f) { f.plain = true; });
    add("a bias of the head", [](Form& f) { f.head_bias = true; });
    add("experts", [](Form& f) { f.experts = 7, f.experts_per_token = 3; });
    add("experts of the second layer, renormalised", [](Form& f) {
        f.experts = 5, f.routing = "softmax_renormalised", f.expert_layers = {0, 1};
    });
    add("experts by sparsemixer",
        [](Form& f) { f.experts = 6, f.routing = "sparsemixer", f.router_epsilon = 0.25f; });
    add("a shared expert", [](Form& f) { f.experts = 4, f.shared_expert = true; });
    add("a shared expert with a router", [](Form& f) {
        f.experts = 18, f.experts_per_token = 5, f.shared_expert = f.shared_router = true;
    });
    add("5 and 6 bits", [](Form& f) { f.more_widths = true; });
    return forms;
}

inline FileSpec random_model(const ModelForm& form = {}) {
    constexpr uint32_t kHidden = 36, kHeadSize = 6, kWidth = 20, kVocabulary = 9;
    Random random(1);
    FileSpec file = small_model();
    file.tensors.clear();
    const std::string decoder = "awq_edge.decoder.";
    const std::string norm_places = form.norm_places;
    const std::string position = form.position;
    const uint32_t query_size = form.heads * kHeadSize;
    const uint32_t key_size = form.kv_heads * kHeadSize;
    const ModelForm defaults;
    const auto flag = [&](const char* key, bool value, bool absent) {
        if (value != absent) file.set(decoder + key, kBoolean, {value});
    };
    const auto word = [&](const char* key, const char* value, const char* absent) {
        if (std::strcmp(value, absent) != 0) file.set_text(decoder + key, value);
    };
    const auto limit = [&](const char* key, float value) {
        if (value != 0) file.set(decoder + key, kF32, bytes_of(value));
    };
    file.set_u32(decoder + "layers", 2);
    file.set_u32(decoder + "hidden_size", kHidden);
    file.set_u32(decoder + "vocabulary_size", kVocabulary);
    file.set_u32(decoder + "context_length", form.context_length);
    file.set_u32(decoder + "heads", form.heads);
    file.set_u32(decoder + "kv_heads", form.kv_heads);
    file.set_u32(decoder + "head_size", kHeadSize);
    file.set_u32(decoder + "feed_forward_size", kWidth);
    file.set_text(decoder + "activation", form.activation);
    file.set(decoder + "qk_norm", kBoolean, {form.qk_norm});
    file.set(decoder + "tied_head", kBoolean, {0});
    file.set(decoder + "sliding_windows", kList, u32_array({3, 0}));
    word("norm", form.norm, defaults.norm);
    word("norm_places", form.norm_places, defaults.norm_places);
    flag("final_norm", form.final_norm, true);
    flag("embedding_norm", form.embedding_norm, false);
    flag("parallel", form.parallel, false);
    word("position", form.position, defaults.position);
    if (!form.rope_tables.empty()) {
        file.set(decoder + "rope_tables", kList, u32_array(form.rope_tables));
    }
    word("qk_norm_kind", form.qk_norm_kind, defaults.qk_norm_kind);
    limit("qkv_clamp", form.qkv_clamp);
    limit("score_cap", form.score_cap);
    limit("logit_cap", form.logit_cap);
    word("feed_forward", form.plain ? "plain" : "gated", "gated");
    constexpr uint32_t kExpertWidth = 13, kSharedWidth = 41;
    if (form.experts > 0) {
        file.set_u32(decoder + "experts", form.experts);
        file.set_u32(decoder + "experts_per_token", form.experts_per_token);
        file.set_u32(decoder + "expert_size", kExpertWidth);
        if (form.shared_expert) file.set_u32(decoder + "shared_expert_size", kSharedWidth);
        word("routing", form.routing, defaults.routing);
        limit("router_epsilon", form.router_epsilon);
        if (!form.expert_layers.empty()) {
            file.set(decoder + "expert_layers", kList, u32_array(form.expert_layers));
        }
    }
    const auto vector = [&](const std::string& name, size_t size, float middle,
                            float around = 0.25f) {
        std::vector<float> values(size);
        for (float& v : values) v = middle + random.real(around);
        file.set_floats(name, values);
    };
    const auto norm = [&](const std::string& name, size_t size, bool biased) {
        vector(name + ".weight", size, 1.0f);
        if (biased) vector(name + ".bias", size, 0.0f);
    };
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns,
                            uint32_t bits) {
        set_random_matrix(file, name, rows, columns, bits, random);
    };
    matrix("token_embd.weight", kVocabulary, kHidden, 8);
    matrix("output.weight", kVocabulary, kHidden, 8);
    if (form.head_bias) vector("output.bias", kVocabulary, 0.0f);
    if (form.embedding_norm) norm("token_embd_norm", kHidden, form.norm_bias);
    if (form.final_norm) norm("output_norm", kHidden, form.norm_bias);
    if (position == "rotary") {
        std::vector<float> frequencies = {1.0f, 0.1f, 0.01f};
        if (!form.rope_tables.empty()) frequencies.insert(frequencies.end(), {0.5f, 0.0f, 0.7f});
        file.set_floats("rope.inverse_frequencies", frequencies);
    } else if (position == "learned") {
        vector("position_embd.weight", size_t{form.context_length} * kHidden, 0.0f, 0.5f);
    } else {
        vector("alibi.slopes", form.heads, 0.3f);
    }
    constexpr uint32_t kWidths[2][7] = {{4, 3, 2, 8, 4, 3, 2}, {3, 4, 8, 2, 2, 4, 3}};
    constexpr uint32_t kMoreWidths[2][7] = {{5, 3, 6, 5, 6, 5, 6}, {6, 4, 5, 6, 5, 8, 5}};
    const auto& bits = form.more_widths ? kMoreWidths : kWidths;
    const bool before = norm_places == "before" || norm_places == "both";
    const bool behind = norm_places != "before";
    const bool one_head = std::strcmp(form.qk_norm_kind, "head") == 0;
    for (int layer = 0; layer < 2; ++layer) {
        const std::string name = "blk." + std::to_string(layer) + ".";
        const uint32_t* const b = bits[layer];
        if (before) norm(name + "attn_norm", kHidden, form.norm_bias);
        matrix(name + "attn_q.weight", query_size, kHidden, b[0]);
        matrix(name + "attn_k.weight", key_size, kHidden, b[1]);
        matrix(name + "attn_v.weight", key_size, kHidden, b[2]);
        vector(name + "attn_k.bias", key_size, 0.0f);
        if (form.qk_norm) {
            norm(name + "attn_q_norm", one_head ? kHeadSize : query_size, form.qk_norm_bias);
            norm(name + "attn_k_norm", one_head ? kHeadSize : key_size, form.qk_norm_bias);
        }
        matrix(name + "attn_output.weight", kHidden, query_size, b[3]);
        if (behind) norm(name + "attn_post_norm", kHidden, form.norm_bias);
        if (before) norm(name + "ffn_norm", kHidden, form.norm_bias);
        if (form.experts > 0 && (form.expert_layers.empty() || form.expert_layers[layer] == 1)) {
            vector(name + "ffn_router.weight", size_t{form.experts} * kHidden, 0.0f);
            const auto expert = [&](const std::string& whose, uint32_t width, uint32_t number) {
                matrix(whose + "ffn_gate.weight", width, kHidden, b[(number + 4) % 7]);
                matrix(whose + "ffn_up.weight", width, kHidden, b[(number + 5) % 7]);
                matrix(whose + "ffn_down.weight", kHidden, width, b[(number + 6) % 7]);
            };
            for (uint32_t e = 0; e < form.experts; ++e) {
                expert(name + "expert." + std::to_string(e) + ".", kExpertWidth, e);
            }
            if (form.shared_expert) expert(name + "shared.", kSharedWidth, 0);
            if (form.shared_router) vector(name + "shared_router.weight", kHidden, 0.0f);
            continue;
        }
        if (!form.plain) matrix(name + "ffn_gate.weight", kWidth, kHidden, b[4]);
        matrix(name + "ffn_up.weight", kWidth, kHidden, b[5]);
        if (form.activation_scales) vector(name + "ffn_act.scales", kWidth, 1.0f);
        matrix(name + "ffn_down.weight", kHidden, kWidth, b[6]);
        vector(name + "ffn_down.bias", kHidden, 0.0f);
        if (behind) norm(name + "ffn_post_norm", kHidden, form.norm_bias);
    }
    return file;
}

}  // namespace awqe::test
