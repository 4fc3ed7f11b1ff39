// Files of every form of a decoder, and a bad one for every rule about its optional keys and the
// tensors that go with them (FORMAT.md section 4, rules 7 and 11), with the sentence that it is
// refused with.
#include "native/runtime/architecture.h"

#include <cmath>
#include <functional>

#include "tests/native/support/random_model.h"
#include "tests/native/support/refused.h"

namespace awqe::test {
namespace {

const std::string kDecoder = "awq_edge.decoder.";

ModelForm form_of(const std::function<void(ModelForm&)>& change) {
    ModelForm form;
    form.qk_norm = false;
    change(form);
    return form;
}

// A form's model with one change more.
FileSpec broken(const std::function<void(ModelForm&)>& change_form,
                const std::function<void(FileSpec&)>& change) {
    FileSpec file = random_model(form_of(change_form));
    change(file);
    return file;
}

void plain(ModelForm&) {}

Architecture read(const FileSpec& file) {
    const AlignedBytes bytes(file.build());
    return Model(bytes.data(), bytes.size()).architecture();
}

}  // namespace

TEST(every_form_is_read) {
    for (const ModelForm& form : model_forms()) check_accepted(random_model(form));
}

TEST(absent_keys_mean_llamas_decoder) {
    const Architecture a = read(small_model());
    CHECK(a.norm == NormKind::kRms && a.norm_places == NormPlaces::kBefore);
    CHECK(a.final_norm && !a.embedding_norm && !a.parallel && a.gated);
    CHECK(a.position == PositionKind::kRotary && a.qk_norm == QkNorm::kNone);
    CHECK(a.rope_tables == std::vector<uint32_t>{0});
    CHECK(a.qkv_clamp == 0 && a.score_cap == 0 && a.logit_cap == 0);
}

TEST(types_of_optional_keys) {
    for (const char* key : {"norm", "norm_places", "final_norm", "embedding_norm", "parallel",
                            "position", "rope_tables", "local_rope_theta", "local_rope_scaling",
                            "qkv_clamp", "score_cap", "logit_cap", "feed_forward"}) {
        check_refused(broken(plain, [&](FileSpec& f) { f.set(kDecoder + key, 12, bytes_of(1.0)); }),
                      "key " + kDecoder + key + " has type f64");
    }
    check_refused(broken([](ModelForm& form) { form.qk_norm = true; },
                         [](FileSpec& f) { f.set_u32(kDecoder + "qk_norm_kind", 1); }),
                  "qk_norm_kind has type u32");
}

TEST(words) {
    const auto word = [](const char* key, const char* allowed) {
        check_refused(broken([](ModelForm& form) { form.qk_norm = true; },
                             [&](FileSpec& f) { f.set_text(kDecoder + key, "other"); }),
                      "key " + kDecoder + key + " is 'other', allowed are " + allowed);
    };
    word("norm", "rms, layer");
    word("norm_places", "before, after, both, stream");
    word("position", "rotary, learned, alibi");
    word("qk_norm_kind", "head, heads, width");
    word("feed_forward", "gated, plain");
    word("activation", "silu, gelu, gelu_tanh, relu");
}

TEST(limits_of_numbers) {
    for (const char* key : {"qkv_clamp", "score_cap", "logit_cap"}) {
        for (const float value : {-1.0f, std::nanf(""), INFINITY, -INFINITY}) {
            check_refused(
                broken(plain, [&](FileSpec& f) { f.set(kDecoder + key, kF32, bytes_of(value)); }),
                "key " + kDecoder + key + " is ");
        }
        check_accepted(
            broken(plain, [&](FileSpec& f) { f.set(kDecoder + key, kF32, bytes_of(0.0f)); }));
    }
    const auto tables = [](const std::vector<uint32_t>& values) {
        return broken(
            plain, [&](FileSpec& f) { f.set(kDecoder + "rope_tables", kList, u32_array(values)); });
    };
    check_refused(tables({0}), "rope_tables has 1 elements for 2 layers");
    check_refused(tables({0, 2}), "rope_tables names table 2, there are at most 2 for 2 layers");
    check_refused(tables({0, ~0u}), "rope_tables names table 4294967295");
    check_refused(tables({0, 1}), "tensor rope.inverse_frequencies is F32[3], it must be F32[6]");
    check_accepted(tables({0, 0}));
}

TEST(keys_that_exclude_each_other) {
    const auto with = [](const char* key, uint32_t type, const Bytes& value, const char* position) {
        return broken([&](ModelForm& form) { form.position = position; },
                      [&](FileSpec& f) { f.set(kDecoder + key, type, value); });
    };
    check_refused(with("norm_places", kText, string_value("both"), "rotary"),
                  "the tensor blk.0.attn_post_norm.weight is missing");
    check_refused(broken([](ModelForm& form) { form.norm_places = "after"; },
                         [](FileSpec& f) { f.set(kDecoder + "parallel", kBoolean, {1}); }),
                  "parallel is true, but awq_edge.decoder.norm_places is not before");
    for (const char* position : {"learned", "alibi"}) {
        check_refused(with("rope_tables", kList, u32_array({0, 0}), position),
                      "there is a key awq_edge.decoder.rope_tables, although "
                      "awq_edge.decoder.position is not rotary");
        check_refused(with("rotary_size", kU32, bytes_of(4u), position),
                      "there is a key awq_edge.decoder.rotary_size, although");
    }
    check_refused(with("score_cap", kF32, bytes_of(5.0f), "alibi"),
                  "score_cap is 5, although awq_edge.decoder.position is alibi");
    check_refused(with("qk_norm_kind", kText, string_value("heads"), "rotary"),
                  "there is a key awq_edge.decoder.qk_norm_kind, although awq_edge.decoder.qk_norm "
                  "is false");
}

// A tensor that a form needs: it may not be absent, of another length, or hold a NaN.
void check_needed(const std::function<void(ModelForm&)>& form, const std::string& name) {
    check_refused(broken(form, [&](FileSpec& f) { f.erase_tensor(name); }), name);
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "tensor " + name + " is F32[2], it must be F32[");
    const float bad = std::nanf("");
    check_refused(
        broken(form, [&](FileSpec& f) { std::memcpy(f.tensor(name).data.data() + 4, &bad, 4); }),
        "tensor " + name + " holds a number that is not finite, at index 1");
}

// One that a form does not have.
void check_unwanted(const std::function<void(ModelForm&)>& form, const std::string& name) {
    check_refused(broken(form, [&](FileSpec& f) { f.set_floats(name, {1, 2}); }),
                  "there is a tensor " + name + ", although ");
}

TEST(norms_and_their_places) {
    const auto after = [](ModelForm& form) { form.norm_places = "after"; };
    const auto stream = [](ModelForm& form) { form.norm_places = "stream"; };
    const auto both = [](ModelForm& form) { form.norm_places = "both"; };
    for (const char* branch : {"blk.1.attn", "blk.1.ffn"}) {
        const std::string norm = std::string(branch) + "_norm.weight";
        const std::string post_norm = std::string(branch) + "_post_norm.weight";
        check_needed(plain, norm);
        check_needed(both, norm);
        check_needed(after, post_norm);
        check_needed(both, post_norm);
        check_needed(stream, post_norm);
        check_unwanted(plain, post_norm);
        check_unwanted(after, norm);
        check_unwanted(stream, norm);
    }
    check_needed(plain, "output_norm.weight");
    check_unwanted([](ModelForm& form) { form.final_norm = false; }, "output_norm.weight");
    check_needed([](ModelForm& form) { form.embedding_norm = true; }, "token_embd_norm.weight");
    check_unwanted(plain, "token_embd_norm.weight");
}

TEST(biases_of_norms) {
    const auto layer = [](ModelForm& form) { form.norm = "layer"; };
    const auto biased = [](ModelForm& form) {
        form.norm = "layer", form.norm_bias = form.embedding_norm = true, form.norm_places = "both";
    };
    check_unwanted(plain, "blk.0.attn_norm.bias");
    check_refused(broken(plain, [](FileSpec& f) { f.set_floats("output_norm.bias", {1}); }),
                  "there is a tensor output_norm.bias, although awq_edge.decoder.norm is rms");
    check_refused(broken(layer, [](FileSpec& f) { f.set_floats("output_norm.bias", {1}); }),
                  "although there is no blk.0.attn_norm.bias");
    for (const char* name :
         {"token_embd_norm.bias", "output_norm.bias", "blk.1.attn_norm.bias",
          "blk.0.attn_post_norm.bias", "blk.1.ffn_norm.bias", "blk.1.ffn_post_norm.bias"}) {
        check_needed(biased, name);
    }
    // Those of queries and keys are a question of their own.
    const auto of_heads = [](ModelForm& form) {
        form.norm = "layer", form.qk_norm = form.qk_norm_bias = true, form.qk_norm_kind = "heads";
    };
    check_accepted(random_model(form_of(of_heads)));
    check_needed(of_heads, "blk.0.attn_k_norm.bias");
    check_needed(of_heads, "blk.1.attn_q_norm.bias");
    check_needed(of_heads, "blk.1.attn_q_norm.weight");
    check_refused(broken([](ModelForm& form) { form.qk_norm = true; },
                         [](FileSpec& f) { f.set_floats("blk.0.attn_q_norm.bias", {1}); }),
                  "attn_q_norm.bias, although awq_edge.decoder.norm is rms");
    check_refused(broken(plain, [](FileSpec& f) { f.set_floats("blk.0.attn_k_norm.bias", {1}); }),
                  "attn_k_norm.bias, although awq_edge.decoder.qk_norm is false");
}

TEST(positions) {
    const auto learned = [](ModelForm& form) { form.position = "learned"; };
    const auto alibi = [](ModelForm& form) { form.position = "alibi", form.heads = 3; };
    check_needed(plain, "rope.inverse_frequencies");
    check_unwanted(learned, "rope.inverse_frequencies");
    check_unwanted(alibi, "rope.inverse_frequencies");
    check_needed(alibi, "alibi.slopes");
    check_unwanted(plain, "alibi.slopes");
    check_unwanted(learned, "alibi.slopes");
    check_unwanted(plain, "position_embd.weight");
    check_unwanted(alibi, "position_embd.weight");
    check_refused(broken(learned, [](FileSpec& f) { f.erase_tensor("position_embd.weight"); }),
                  "the tensor position_embd.weight is missing");
    check_refused(broken(learned, [](FileSpec& f) { f.set_u32(kDecoder + "context_length", 17); }),
                  "tensor position_embd.weight is F32[576], it must be F32[612]");
    // Every table has the bound of frequencies.
    check_refused(broken([](ModelForm& form) { form.rope_tables = {1, 0}; },
                         [](FileSpec& f) {
                             f.set_floats("rope.inverse_frequencies", {1, 1, 1, 1, 1, 3e8f});
                         }),
                  "holds 3e+08 at index 5; with a context of 16");
}

TEST(feed_forwards_and_heads) {
    const auto without_gate = [](ModelForm& form) { form.plain = true; };
    check_unwanted(without_gate, "blk.0.ffn_gate.weight");
    check_refused(broken(plain, [](FileSpec& f) { f.erase_tensor("blk.1.ffn_gate.weight"); }),
                  "the tensor blk.1.ffn_gate.weight is missing");
    check_unwanted(plain, "blk.0.ffn_act.scales");
    check_refused(
        broken(without_gate, [](FileSpec& f) { f.set_floats("blk.1.ffn_act.scales", {1}); }),
        "tensor blk.1.ffn_act.scales is F32[1], it must be F32[20]");
    check_refused(broken(plain, [](FileSpec& f) { f.set_floats("output.bias", {1}); }),
                  "tensor output.bias is F32[1], it must be F32[9]");
}

TEST(what_a_token_reads) {
    // Of a table of positions one row, of all other tensors everything.
    const auto decode_bytes = [](const char* position) {
        const AlignedBytes bytes(
            random_model(form_of([&](ModelForm& form) { form.position = position; })).build());
        return Model(bytes.data(), bytes.size()).decode_bytes();
    };
    CHECK_EQUAL(decode_bytes("learned") + 3 * sizeof(float),
                decode_bytes("rotary") + 36 * sizeof(float));
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
