// Files of decoders that look at pictures, and a bad one for every rule about their keys and
// tensors (FORMAT.md section 4, rules 7 and 11), with the sentence that it is refused with.
#include <cmath>
#include <functional>

#include "tests/native/support/random_vision.h"
#include "tests/native/support/refused.h"

namespace awqe::test {
namespace {

const std::string kCross = "awq_edge.cross.";
const std::string kVision = "awq_edge.vision.";
const std::string kResampler = "awq_edge.vision.resampler.";

using Change = std::function<void(FileSpec&)>;

// The form with norms of queries and keys and a resampler, and the one without either.
VisionForm with_all() {
    VisionForm form;
    form.class_token = form.keep_class = form.resampler = form.qk_norm = true;
    form.blocks = {0, 1};
    return form;
}

VisionForm without() {
    VisionForm form;
    form.blocks = {0, 1};
    form.block_norm = "layer";
    form.plain_block = true;
    return form;
}

FileSpec broken(const VisionForm& form, const Change& change) {
    FileSpec file = random_vision_model(form);
    change(file);
    return file;
}

Change number(const std::string& key, uint32_t value) {
    return [=](FileSpec& f) { f.set_u32(key, value); };
}

}  // namespace

TEST(both_forms_are_read) {
    check_accepted(random_vision_model(with_all()));
    check_accepted(random_vision_model(without()));
}

TEST(what_is_read) {
    const AlignedBytes bytes(random_vision_model(with_all()).build());
    const Model model(bytes.data(), bytes.size());
    CHECK(model.cross() != nullptr && model.blocks().size() == 1);
    CHECK(model.cross()->before == std::vector<uint32_t>{1});
    CHECK_EQUAL(model.cross()->row_size(), uint64_t{2 * kBlockHeads * kBlockHeadSize});
    CHECK_EQUAL(model.vision()->embedding_size, 2 * kBlockHeads * kBlockHeadSize);
    CHECK_EQUAL(model.vision()->architecture.tokens(), kLatents);
    CHECK(model.blocks()[0].query_norm.weight != nullptr);
    CHECK_EQUAL(model.blocks()[0].linears().size(), 2 + 3u);
    // Decoding reads the blocks, and nothing of what makes keys and values.
    uint64_t blocks = 0;
    ModelForm decoder;
    decoder.qk_norm = false;
    decoder.context_length = 160;
    for (const TensorSpec& t : random_vision_model(with_all()).tensors) {
        if (t.name.find(".cross_") != std::string::npos) blocks += t.data.size();
    }
    const AlignedBytes text(random_model(decoder).build());
    CHECK_EQUAL(model.decode_bytes() - Model(text.data(), text.size()).decode_bytes(), blocks);
}

TEST(required_keys) {
    for (const char* key : {"heads", "head_size", "feed_forward_size", "norm", "norm_epsilon",
                            "feed_forward", "activation"}) {
        check_refused(broken(without(), [&](FileSpec& f) { f.erase_key(kCross + key); }),
                      "the required key " + kCross + key + " is missing");
    }
    for (const char* key :
         {"rows", "heads", "head_size", "feed_forward_size", "activation", "norm_epsilon"}) {
        check_refused(broken(with_all(), [&](FileSpec& f) { f.erase_key(kResampler + key); }),
                      "the required key " + kResampler + key + " is missing");
    }
    check_refused(broken(without(), [](FileSpec& f) { f.erase_key(kCross + "layers"); }),
                  "there is a key awq_edge.cross.heads, although there is no "
                  "awq_edge.cross.layers");
    check_refused(broken(with_all(), [](FileSpec& f) { f.erase_key(kResampler + "layers"); }),
                  "there is a key awq_edge.vision.resampler.rows, although there is no "
                  "awq_edge.vision.resampler.layers");
}

TEST(limits_and_words) {
    for (const char* key : {"heads", "head_size", "feed_forward_size"}) {
        check_refused(broken(without(), number(kCross + key, 0)),
                      "key " + kCross + key + " is 0, allowed are 1 to ");
        check_refused(broken(with_all(), number(kResampler + key, ~0u)),
                      "key " + kResampler + key + " is 4294967295, allowed are 1 to ");
    }
    for (const char* key : {"layers", "rows"}) {
        check_refused(broken(with_all(), number(kResampler + key, 0)),
                      "key " + kResampler + key + " is 0, allowed are 1 to ");
    }
    check_refused(broken(without(), number(kCross + "head_size", 9)),
                  "key awq_edge.cross.head_size is 9, it must be even");
    check_refused(broken(without(),
                         [](FileSpec& f) {
                             number(kCross + "heads", 1u << 14)(f);
                             number(kCross + "head_size", 128)(f);
                         }),
                  "awq_edge.cross.heads times awq_edge.cross.head_size is 2097152");
    check_refused(broken(without(),
                         [](FileSpec& f) {
                             number(kCross + "heads", 1u << 13)(f);
                             number(kCross + "head_size", 128)(f);
                         }),
                  "a picture's row has 2097152 numbers in the gated blocks, at most 1048576");
    check_refused(broken(with_all(),
                         [](FileSpec& f) {
                             number(kResampler + "heads", 1u << 14)(f);
                             number(kResampler + "head_size", 128)(f);
                         }),
                  "awq_edge.vision.resampler.heads times awq_edge.vision.resampler.head_size is "
                  "2097152");
    for (const std::vector<uint32_t>& layers :
         {std::vector<uint32_t>{0, 0}, std::vector<uint32_t>{1, 2}}) {
        check_refused(
            broken(without(),
                   [&](FileSpec& f) { f.set(kCross + "layers", kList, u32_array(layers)); }),
            "key awq_edge.cross.layers must hold 0 or 1 for each layer, and 1 for some");
    }
    const auto word = [](const std::string& key, const char* allowed) {
        check_refused(broken(with_all(), [&](FileSpec& f) { f.set_text(key, "other"); }),
                      "key " + key + " is 'other', allowed are " + allowed);
    };
    word(kCross + "norm", "rms, layer");
    word(kCross + "feed_forward", "gated, plain");
    word(kCross + "activation", "silu, gelu, gelu_tanh, relu");
    word(kResampler + "activation", "quick_gelu, gelu, gelu_tanh, silu, relu");
    for (const float value : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
        for (const std::string& key : {kCross + "norm_epsilon", kResampler + "norm_epsilon"}) {
            check_refused(
                broken(with_all(), [&](FileSpec& f) { f.set(key, kF32, bytes_of(value)); }),
                "key " + key + " is ");
        }
    }
}

TEST(keys_that_exclude_each_other) {
    const auto flag = [](const std::string& key) {
        return [=](FileSpec& f) { f.set(key, kBoolean, {1}); };
    };
    const std::string is_cross = ", although awq_edge.vision.connector is cross";
    check_refused(broken(without(), flag(kVision + "post_norm")),
                  "there is a key awq_edge.vision.post_norm" + is_cross);
    for (const char* key : {"pool", "regroup"}) {
        check_refused(broken(without(), number(kVision + key, 1)),
                      "there is a key " + kVision + key + is_cross);
    }
    check_refused(broken(without(), number(kVision + "connector_size", 8)),
                  "there is a key awq_edge.vision.connector_size" + is_cross);
    check_refused(broken(without(), flag(kVision + "keep_class")),
                  "there is a key awq_edge.vision.keep_class, although there is no class token");
    check_refused(broken(without(), flag("awq_edge.decoder.parallel")),
                  "although the decoder has parallel branches");
    VisionForm plain;
    plain.class_token = true;
    check_refused(broken(plain, flag(kVision + "keep_class")),
                  "there is a key awq_edge.vision.keep_class, although "
                  "awq_edge.vision.connector is not cross");
    check_refused(broken(plain, number(kResampler + "layers", 1)), "is missing");
    check_refused(broken(plain, [](FileSpec& f) { f.set_text(kVision + "connector", "cross"); }),
                  "awq_edge.vision.connector is cross, although there is no awq_edge.cross.layers");
    check_refused(
        broken(without(), [](FileSpec& f) { f.set_text(kVision + "connector", "linear"); }),
        "awq_edge.vision.connector is not cross, although there is an awq_edge.cross.layers");
    FileSpec blind = random_vision_model(without());
    for (const char* key :
         {"layers", "hidden_size", "heads", "head_size", "feed_forward_size", "image_size",
          "patch_size", "norm_epsilon", "activation", "connector"}) {
        blind.erase_key(kVision + key);
    }
    check_refused(blind,
                  "there is a key awq_edge.cross.layers, although there is no "
                  "awq_edge.vision.layers");
}

namespace {

void check_needed(const VisionForm& form, const std::string& name) {
    check_refused(broken(form, [&](FileSpec& f) { f.erase_tensor(name); }),
                  "the tensor " + name + " is missing");
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "tensor " + name + " is F32[2], it must be");
    const float bad = std::nanf("");
    check_refused(
        broken(form, [&](FileSpec& f) { std::memcpy(f.tensor(name).data.data() + 4, &bad, 4); }),
        "tensor " + name + " holds a number that is not finite, at index 1");
}

void check_unwanted(const VisionForm& form, const std::string& name, const std::string& why) {
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "there is a tensor " + name + ", although " + why);
}

void check_matrix(const VisionForm& form, const std::string& stem, uint64_t rows,
                  uint64_t columns) {
    const std::string name = stem + ".weight";
    const std::string shape = std::to_string(rows) + ", " + std::to_string(columns) + "]";
    check_refused(broken(form, [&](FileSpec& f) { f.erase_tensor(name); }),
                  "the tensor " + name + " is missing");
    check_refused(broken(form, [&](FileSpec& f) { f.set_matrix(name, rows, columns + 1); }),
                  "it must be [" + shape);
}

}  // namespace

TEST(vectors) {
    for (const char* name :
         {"blk.1.cross_attn_norm.weight", "blk.1.cross_ffn_norm.weight",
          "blk.1.cross_attn_q_norm.weight", "mm.blk.1.k_norm.weight", "v.resampler.latents",
          "v.resampler.1.ln_rows.bias", "v.resampler.0.ln1.weight", "v.resampler.1.ln2.bias",
          "v.resampler.0.attn_q_norm.bias", "v.resampler.1.attn_k_norm.weight",
          "v.resampler.post_ln.weight"}) {
        check_needed(with_all(), name);
    }
    check_needed(without(), "blk.1.cross_attn_norm.bias");
    check_needed(without(), "blk.1.cross_ffn_norm.bias");
    check_unwanted(with_all(), "blk.1.cross_ffn_norm.bias", "awq_edge.cross.norm is rms");
    check_unwanted(without(), "blk.1.cross_attn_q_norm.weight", "awq_edge.cross.qk_norm is false");
    check_unwanted(without(), "mm.blk.1.k_norm.weight", "awq_edge.cross.qk_norm is false");
    check_unwanted(without(), "v.resampler.latents",
                   "there is no awq_edge.vision.resampler.layers");
    check_unwanted(without(), "blk.1.cross_ffn_gate.weight",
                   "awq_edge.cross.feed_forward is plain");
    check_unwanted(without(), "mm.0.weight", "awq_edge.vision.connector is cross");
}

TEST(matrices) {
    constexpr uint32_t kSize = kBlockHeads * kBlockHeadSize;
    check_matrix(with_all(), "blk.1.cross_attn_q", kSize, kEmbedding);
    check_matrix(with_all(), "blk.1.cross_attn_output", kEmbedding, kSize);
    check_matrix(with_all(), "blk.1.cross_ffn_gate", kBlockWidth, kEmbedding);
    check_matrix(with_all(), "blk.1.cross_ffn_down", kEmbedding, kBlockWidth);
    check_matrix(with_all(), "mm.blk.1.k", kSize, kVisionHidden);
    check_matrix(with_all(), "mm.blk.1.v", kSize, kVisionHidden);
    check_matrix(with_all(), "v.resampler.0.attn_q", kResamplerHeads * kResamplerHeadSize,
                 kVisionHidden);
    check_matrix(with_all(), "v.resampler.1.attn_out", kVisionHidden,
                 kResamplerHeads * kResamplerHeadSize);
    check_matrix(with_all(), "v.resampler.1.ffn_up", 60, kVisionHidden);
    check_refused(
        broken(with_all(),
               [](FileSpec& f) { f.set_matrix("mm.blk.1.v.weight", kSize, kVisionHidden, 8, 64); }),
        "mm.blk.1.k has group size 32 and v 64, they must be equal");
    check_refused(broken(with_all(),
                         [](FileSpec& f) {
                             f.set_matrix("v.resampler.0.attn_v.weight",
                                          kResamplerHeads * kResamplerHeadSize, kVisionHidden, 8,
                                          64);
                         }),
                  "v.resampler.0.attn_k has group size 32 and attn_v 64, they must be equal");
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
