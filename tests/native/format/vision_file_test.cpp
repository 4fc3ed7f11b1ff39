// Files with a vision part of every form, and a bad one for every rule about its keys and tensors
// (FORMAT.md section 4, rules 7 and 11), with the sentence that it is refused with.
#include <cmath>
#include <functional>

#include "native/runtime/model.h"
#include "tests/native/support/random_vision.h"
#include "tests/native/support/refused.h"

namespace awqe::test {
namespace {

const std::string kVision = "awq_edge.vision.";

using Change = std::function<void(FileSpec&)>;

// A form's model with one change more.
FileSpec broken(const std::function<void(VisionForm&)>& change_form, const Change& change) {
    VisionForm form;
    change_form(form);
    FileSpec file = random_vision_model(form);
    change(file);
    return file;
}

void plain(VisionForm&) {}
void with_class(VisionForm& form) { form.class_token = form.pre_norm = form.post_norm = true; }
void with_mlp(VisionForm& form) { form.mlp = form.connector_bias = form.newline = true; }
void with_norm(VisionForm& form) { form.connector_norm = "layer"; }
void with_rms(VisionForm& form) { form.connector_norm = "rms"; }

Change number(const char* key, uint32_t value) {
    return [=](FileSpec& f) { f.set_u32(kVision + key, value); };
}

}  // namespace

TEST(every_form_is_read) {
    for (const VisionForm& form : vision_forms()) check_accepted(random_vision_model(form));
}

TEST(a_file_without_the_key_has_no_vision_part) {
    const AlignedBytes text(random_model().build());
    CHECK(Model(text.data(), text.size()).vision() == nullptr);
    // Half a vision part is a mistake, not a model of text.
    check_refused(broken(plain, [](FileSpec& f) { f.erase_key(kVision + "layers"); }),
                  "there is a key awq_edge.vision.hidden_size, although there is no "
                  "awq_edge.vision.layers");
}

TEST(what_is_read) {
    const AlignedBytes bytes(random_vision_model(vision_forms()[3]).build());
    const Model model(bytes.data(), bytes.size());
    CHECK(model.vision() != nullptr);
    const VisionModel& w = *model.vision();
    const VisionArchitecture& a = w.architecture;
    CHECK_EQUAL(a.grid(), 9u);
    CHECK_EQUAL(a.rows(), 81u);
    CHECK_EQUAL(a.tokens(), 25u);  // 9 patches on a side, in twos: the last pair is half empty
    CHECK_EQUAL(a.connector_columns(), 4 * kVisionHidden);
    CHECK_EQUAL(w.embedding_size, kEmbedding);
    CHECK(a.connector_norm == ConnectorNorm::kLayer && a.connector_norm_epsilon == 1e-5f);
    CHECK(a.activation == Activation::kGelu && a.connector_activation == Activation::kSilu);
    CHECK(w.layers[1].key.bias == nullptr && w.layers[0].key.bias != nullptr);
    CHECK(w.newline == nullptr && w.class_token == nullptr && w.pre_norm.weight == nullptr);
    CHECK_EQUAL(w.linears().size(), 1 + 2 * 6 + 2u);

    const AlignedBytes clip(random_vision_model(vision_forms()[0]).build());
    const Model of_clip(clip.data(), clip.size());
    const VisionArchitecture& c = of_clip.vision()->architecture;
    CHECK_EQUAL(c.rows(), 65u);
    CHECK_EQUAL(c.tokens(), 64u);
    CHECK(c.activation == Activation::kQuickGelu && c.connector_activation == Activation::kGelu);
    CHECK(of_clip.vision()->newline != nullptr && of_clip.vision()->class_token != nullptr);
}

TEST(decoding_reads_nothing_of_it) {
    ModelForm decoder;
    decoder.qk_norm = false;
    decoder.context_length = 160;
    const AlignedBytes text(random_model(decoder).build());
    const AlignedBytes both(random_vision_model().build());
    CHECK_EQUAL(Model(text.data(), text.size()).decode_bytes(),
                Model(both.data(), both.size()).decode_bytes());
}

TEST(required_keys) {
    for (const char* key : {"hidden_size", "heads", "head_size", "feed_forward_size", "image_size",
                            "patch_size", "norm_epsilon", "activation", "connector"}) {
        check_refused(broken(plain, [&](FileSpec& f) { f.erase_key(kVision + key); }),
                      "the required key " + kVision + key + " is missing");
    }
    check_refused(broken(with_mlp, [](FileSpec& f) { f.erase_key(kVision + "connector_size"); }),
                  "the required key awq_edge.vision.connector_size is missing");
    check_refused(
        broken(with_norm, [](FileSpec& f) { f.erase_key(kVision + "connector_norm_epsilon"); }),
        "the required key awq_edge.vision.connector_norm_epsilon is missing");
}

TEST(types) {
    for (const char* key :
         {"layers",        "hidden_size", "heads",         "head_size",    "feed_forward_size",
          "image_size",    "patch_size",  "norm_epsilon",  "activation",   "class_token",
          "pre_norm",      "post_norm",   "pool",          "regroup",      "connector_norm",
          "connector",     "position",    "norm",          "feed_forward", "family",
          "preprocessing", "prompt",      "bidirectional", "by_columns"}) {
        check_refused(broken(plain, [&](FileSpec& f) { f.set(kVision + key, 12, bytes_of(1.0)); }),
                      "key " + kVision + key + " has type f64");
    }
    for (const char* key : {"connector_size", "connector_activation"}) {
        check_refused(
            broken(with_mlp, [&](FileSpec& f) { f.set(kVision + key, 12, bytes_of(1.0)); }),
            "key " + kVision + key + " has type f64");
    }
    for (const char* key : {"vision_bits", "vision_group_size", "calibration_images_sha256"}) {
        const std::string name = std::string("awq_edge.quantization.") + key;
        check_refused(broken(plain, [&](FileSpec& f) { f.set(name, 12, bytes_of(1.0)); }),
                      "key " + name + " has type f64");
    }
}

TEST(words) {
    const auto word = [](void (*form)(VisionForm&), const char* key, const char* allowed) {
        check_refused(broken(form, [&](FileSpec& f) { f.set_text(kVision + key, "other"); }),
                      "key " + kVision + key + " is 'other', allowed are " + allowed);
    };
    word(plain, "activation", "quick_gelu, gelu, gelu_tanh, silu, relu");
    word(with_mlp, "connector_activation", "quick_gelu, gelu, gelu_tanh, silu, relu");
    word(plain, "connector_norm", "none, layer, rms");
    word(plain, "connector", "linear, mlp, cross");
    word(plain, "position", "learned, rotary");
    word(plain, "norm", "layer, rms");
    word(plain, "feed_forward", "plain, gated");
}

TEST(limits_of_numbers) {
    for (const char* key : {"layers", "hidden_size", "heads", "head_size", "feed_forward_size",
                            "image_size", "patch_size", "pool", "regroup"}) {
        check_refused(broken(plain, number(key, 0)),
                      "key " + kVision + key + " is 0, allowed are 1 to ");
        check_refused(broken(plain, number(key, ~0u)),
                      "key " + kVision + key + " is 4294967295, allowed are 1 to ");
    }
    check_refused(broken(with_mlp, number("connector_size", 0)), "connector_size is 0, allowed");
    for (const float value : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
        for (const char* key : {"norm_epsilon", "connector_norm_epsilon"}) {
            check_refused(broken(with_norm,
                                 [&](FileSpec& f) { f.set(kVision + key, kF32, bytes_of(value)); }),
                          "key " + kVision + key + " is ");
        }
    }
}

TEST(sizes_that_do_not_fit_each_other) {
    check_refused(broken(plain,
                         [](FileSpec& f) {
                             number("heads", 1u << 14)(f);
                             number("head_size", 128)(f);
                         }),
                  "awq_edge.vision.heads times awq_edge.vision.head_size is 2097152, at most "
                  "1048576 is allowed");
    check_refused(broken(plain, number("patch_size", 40)),
                  "awq_edge.vision.patch_size is 40, which is more than the 39 in "
                  "awq_edge.vision.image_size");
    check_refused(broken(plain,
                         [](FileSpec& f) {
                             number("image_size", 1000)(f);
                             number("patch_size", 1000)(f);
                         }),
                  "so that a patch has 3000000 numbers; at most 1048576 are allowed");
    check_refused(broken(plain,
                         [](FileSpec& f) {
                             number("image_size", 257)(f);
                             number("patch_size", 1)(f);
                         }),
                  "which gives 66049 rows; at most 65536 are allowed");
    check_refused(broken(with_class,
                         [](FileSpec& f) {
                             number("image_size", 256)(f);
                             number("patch_size", 1)(f);
                         }),
                  "which gives 65537 rows; at most 65536 are allowed");
    check_refused(broken(plain, number("pool", 2)),
                  "awq_edge.vision.pool is 2, which does not divide the 9 patches on a side");
    check_refused(broken(plain, number("regroup", 10)),
                  "awq_edge.vision.regroup is 10, but a side has 9 rows");
    check_refused(broken(plain,
                         [](FileSpec& f) {
                             number("hidden_size", 1u << 18)(f);
                             number("regroup", 3)(f);
                         }),
                  "so that the connector reads 2359296 numbers; at most 1048576 are allowed");
}

TEST(rows_that_see_each_other) {
    const auto flag = [](FileSpec& f) { f.set(kVision + "bidirectional", kBoolean, {1}); };
    check_refused(broken(plain,
                         [&](FileSpec& f) {
                             number("image_size", 132)(f);
                             flag(f);
                         }),
                  "awq_edge.vision.bidirectional is true, and a picture becomes 1089 embeddings; "
                  "at most 1024 can see each other");
    ModelForm decoder;
    decoder.qk_norm = false;
    decoder.position = "alibi";
    FileSpec file = random_model(decoder);
    add_vision(file);
    check_accepted(file);
    flag(file);
    check_refused(file,
                  "awq_edge.vision.bidirectional is true, although awq_edge.decoder.position "
                  "is alibi: no distance is counted forwards");
}

TEST(towers_that_turn) {
    const auto rotary = [](VisionForm& form) {
        form.rotary = true;
        form.image_size = 96;
        form.regroup = 2;
        form.heads = 2;
        form.head_size = 20;
    };
    const auto windows = [&](VisionForm& form) {
        rotary(form);
        form.window = 4;
    };
    check_refused(broken(rotary, number("head_size", 18)),
                  "awq_edge.vision.head_size is 18, although awq_edge.vision.position is rotary");
    const char* const kGoesWith =
        "awq_edge.vision.position is rotary, which goes with no class_token, no pool, no "
        "by_columns and an image_size that is a multiple of patch_size times regroup";
    check_refused(broken(rotary, number("image_size", 97)), kGoesWith);
    check_refused(broken(rotary, number("pool", 2)), kGoesWith);
    check_refused(broken(rotary, [](FileSpec& f) { f.set(kVision + "by_columns", kBoolean, {1}); }),
                  kGoesWith);
    check_refused(broken(plain, number("window", 4)),
                  "there is a key awq_edge.vision.window, although awq_edge.vision.position is "
                  "learned");
    const Change full = [](FileSpec& f) { f.set(kVision + "full_layers", kList, u32_array({1})); };
    check_refused(broken(rotary, full),
                  "there is a key awq_edge.vision.full_layers, although there is no "
                  "awq_edge.vision.window");
    check_accepted(broken(windows, full));
    check_refused(broken(windows, number("window", 0)),
                  "key awq_edge.vision.window is 0, allowed are 1 to ");
    check_refused(
        broken(rotary, [](FileSpec& f) { f.set(kVision + "bidirectional", kBoolean, {1}); }),
        "awq_edge.vision.bidirectional is true, although awq_edge.vision.position is "
        "rotary");
    check_refused(broken(rotary,
                         [](FileSpec& f) {
                             f.set_floats("v.rope.inverse_frequencies",
                                          {1.0f, 2.0f, 0.5f, 0.2f, 0.1f});
                         }),
                  "tensor v.rope.inverse_frequencies holds 2 at index 1; the largest magnitude is "
                  "1");
    check_refused(
        broken(rotary, [](FileSpec& f) { f.set_floats("v.position_embd.weight", {1.0f}); }),
        "v.position_embd.weight");
    const auto tapped = [&](VisionForm& form) {
        rotary(form);
        form.mlp = true;
        form.position_grid = 3;
        form.taps = {0, 1};
        form.interleaved = true;
    };
    const auto list = [](const char* key, std::vector<uint32_t> numbers) {
        return [=](FileSpec& f) { f.set(kVision + key, kList, u32_array(numbers)); };
    };
    check_accepted(broken(tapped, [](FileSpec&) {}));
    check_refused(broken(tapped, number("position_grid", 257)),
                  "key awq_edge.vision.position_grid is 257, allowed are 1 to 256");
    check_refused(broken(plain, number("position_grid", 3)),
                  "there is a key awq_edge.vision.position_grid, although "
                  "awq_edge.vision.position is learned");
    check_refused(broken(rotary, list("taps", {0})),
                  "there is a key awq_edge.vision.taps, although awq_edge.vision.connector is "
                  "linear");
    for (const std::vector<uint32_t>& numbers : {std::vector<uint32_t>{1, 0}, {0, 0}, {0, 2}}) {
        check_refused(broken(tapped, list("taps", numbers)),
                      "key awq_edge.vision.taps names layer " + std::to_string(numbers[1]) +
                          " at index 1; they ascend, and the tower has 2 layers");
    }
    const Change in_turn = [](FileSpec& f) {
        f.set("awq_edge.decoder.rope_interleaved", kBoolean, {1});
    };
    check_refused(broken(plain, in_turn),
                  "awq_edge.decoder.rope_interleaved is true, although there is no "
                  "awq_edge.decoder.rope_sections");
    check_refused(broken(tapped,
                         [](FileSpec& f) {
                             f.set("awq_edge.decoder.rope_sections", kList, u32_array({0, 1, 2}));
                         }),
                  "awq_edge.decoder.rope_interleaved is true, and the numbers of a position have "
                  "no 2 turns among 3 angles");
    const Change sections = [](FileSpec& f) {
        f.set("awq_edge.decoder.rope_sections", kList, u32_array({1, 1}));
    };
    check_refused(broken(rotary, sections),
                  "key awq_edge.decoder.rope_sections has 2 elements, a position three numbers");
    check_refused(broken(rotary,
                         [](FileSpec& f) {
                             f.set("awq_edge.decoder.rope_sections", kList, u32_array({1, 1, 2}));
                         }),
                  "key awq_edge.decoder.rope_sections holds 4 angles, a head of 6 has 3");
}

TEST(keys_that_exclude_each_other) {
    check_refused(broken(plain,
                         [](FileSpec& f) {
                             f.set(kVision + "connector_norm_epsilon", kF32, bytes_of(1e-5f));
                         }),
                  "there is a key awq_edge.vision.connector_norm_epsilon, although "
                  "awq_edge.vision.connector_norm is none");
    check_refused(broken(plain, number("connector_size", 8)),
                  "there is a key awq_edge.vision.connector_size, although "
                  "awq_edge.vision.connector is linear");
    check_refused(
        broken(plain, [](FileSpec& f) { f.set_text(kVision + "connector_activation", "gelu"); }),
        "there is a key awq_edge.vision.connector_activation, although "
        "awq_edge.vision.connector is linear");
}

namespace {

// A vector that a form needs: it may not be absent, of another length, or hold a NaN.
void check_needed(void (*form)(VisionForm&), const std::string& name) {
    check_refused(broken(form, [&](FileSpec& f) { f.erase_tensor(name); }),
                  "the tensor " + name + " is missing");
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "tensor " + name + " is F32[2], it must be F32[");
    const float bad = std::nanf("");
    check_refused(
        broken(form, [&](FileSpec& f) { std::memcpy(f.tensor(name).data.data() + 4, &bad, 4); }),
        "tensor " + name + " holds a number that is not finite, at index 1");
}

void check_unwanted(void (*form)(VisionForm&), const std::string& name, const std::string& why) {
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "there is a tensor " + name + ", although awq_edge.vision." + why);
}

void check_matrix(void (*form)(VisionForm&), const std::string& stem, uint64_t rows,
                  uint64_t columns) {
    const std::string name = stem + ".weight";
    check_refused(broken(form, [&](FileSpec& f) { f.erase_tensor(name); }),
                  "the tensor " + name + " is missing");
    check_refused(broken(form, [&](FileSpec& f) { f.set_matrix(name, rows + 1, columns); }),
                  "matrix " + name + " is [" + std::to_string(rows + 1) + ", " +
                      std::to_string(columns) + "], it must be [" + std::to_string(rows) + ", " +
                      std::to_string(columns) + "]");
    check_refused(broken(form, [&](FileSpec& f) { f.set_matrix(name, rows, columns + 1); }),
                  "it must be [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
    check_refused(broken(form,
                         [&](FileSpec& f) {
                             f.erase_tensor(name);
                             f.set_floats(name, {1, 2});
                         }),
                  "tensor " + name + " is F32, it must be a packed matrix");
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(stem + ".bias", {1}); }),
                  "tensor " + stem + ".bias is F32[1], it must be F32[" + std::to_string(rows));
}

}  // namespace

TEST(vectors) {
    check_needed(plain, "v.pixel_values");
    for (const char* stem : {"v.blk.0.ln1", "v.blk.1.ln2"}) {
        check_needed(plain, stem + std::string(".weight"));
        check_needed(plain, stem + std::string(".bias"));
    }
    for (const char* stem : {"v.pre_ln", "v.post_ln"}) {
        const std::string why = stem[3] == 'r' ? "pre_norm is false" : "post_norm is false";
        for (const char* kind : {".weight", ".bias"}) {
            check_needed(with_class, stem + std::string(kind));
            check_unwanted(plain, stem + std::string(kind), why);
        }
    }
    check_needed(with_class, "v.class_embd");
    check_unwanted(plain, "v.class_embd", "class_token is false");
    check_needed(with_norm, "mm.norm.weight");
    check_needed(with_norm, "mm.norm.bias");
    check_needed(with_rms, "mm.norm.weight");
    check_unwanted(with_rms, "mm.norm.bias", "connector_norm is rms");
    check_unwanted(plain, "mm.norm.weight", "connector_norm is none");
    check_unwanted(plain, "mm.norm.bias", "connector_norm is none");
    check_unwanted(plain, "mm.2.bias", "connector is linear");
    check_refused(broken(with_mlp, [](FileSpec& f) { f.set_floats("mm.image_newline", {1}); }),
                  "tensor mm.image_newline is F32[1], it must be F32[36]");
    check_refused(
        broken(plain, [](FileSpec& f) { f.set_floats("v.position_embd.weight", {1, 2}); }),
        "tensor v.position_embd.weight is F32[2], it must be F32[3240]");
    check_refused(broken(plain, [](FileSpec& f) { f.erase_tensor("v.position_embd.weight"); }),
                  "the tensor v.position_embd.weight is missing");
}

TEST(matrices) {
    check_matrix(plain, "v.patch_embd", kVisionHidden, 48);
    for (const char* name : {"attn_q", "attn_k", "attn_v"}) {
        check_matrix(plain, std::string("v.blk.1.") + name, 27, kVisionHidden);
    }
    check_matrix(plain, "v.blk.0.attn_out", kVisionHidden, 27);
    check_matrix(plain, "v.blk.1.ffn_up", kVisionWidth, kVisionHidden);
    check_matrix(plain, "v.blk.0.ffn_down", kVisionHidden, kVisionWidth);
    check_matrix(plain, "mm.0", kEmbedding, kVisionHidden);
    check_matrix(with_mlp, "mm.0", kConnectorWidth, kVisionHidden);
    check_matrix(with_mlp, "mm.2", kEmbedding, kConnectorWidth);
    check_refused(broken(plain, [](FileSpec& f) { f.set_matrix("mm.2.weight", kEmbedding, 8); }),
                  "there is a tensor mm.2.weight, although awq_edge.vision.connector is linear");
    for (const char* name : {"attn_k", "attn_v"}) {
        check_refused(broken(plain,
                             [&](FileSpec& f) {
                                 f.set_matrix(std::string("v.blk.1.") + name + ".weight", 27,
                                              kVisionHidden, 4, 64);
                             }),
                      std::string("v.blk.1.attn_q has group size 32 and ") + name +
                          " 64, they must be equal");
    }
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
