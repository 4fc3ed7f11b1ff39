// Writes the fuzzers' seeds: write_seeds tests/data/fuzz
//
// small.awq.gguf is the smallest valid file, for the reader. evaluate/ holds a small decoder with
// random weights and one copy of it for every kind of damaged number that once gave text from what
// is not finite, or other logits in other kernel tables.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>

#include "tests/native/support/random_vision.h"

namespace awqe::test {
namespace {

bool write(const std::filesystem::path& path, const FileSpec& file) {
    const Bytes bytes = file.build();
    std::FILE* const out = std::fopen(path.c_str(), "wb");
    if (out == nullptr) return false;
    const bool written = std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size();
    return std::fclose(out) == 0 && written;
}

// The scale of a matrix's row and group: FORMAT.md, section 3.
void set_scale(FileSpec& file, const std::string& name, size_t row, size_t group, uint16_t half) {
    TensorSpec& t = file.tensor(name);
    uint64_t rows;
    std::memcpy(&rows, t.data.data() + 8, sizeof(rows));
    const size_t block_bytes = (t.data.size() - kMatrixHeaderBytes) / ((rows + 3) / 4);
    std::memcpy(
        t.data.data() + kMatrixHeaderBytes + row / 4 * block_bytes + 2 * (group * 4 + row % 4),
        &half, sizeof(half));
}

void set_float(FileSpec& file, const std::string& name, size_t index, float value) {
    std::memcpy(file.tensor(name).data.data() + index * sizeof(float), &value, sizeof(value));
}

struct Damage {
    const char* name;
    std::function<void(FileSpec&)> change;
};

const Damage kDamages[] = {
    {"sound", [](FileSpec&) {}},
    {"nan_scale_of_a_query",
     [](FileSpec& f) { set_scale(f, "blk.0.attn_q.weight", 1, 0, 0x7e01); }},
    {"infinite_scale_of_a_key_in_the_last_layer",
     [](FileSpec& f) { set_scale(f, "blk.1.attn_k.weight", 5, 1, 0xfc00); }},
    {"infinite_scale_of_a_value",
     [](FileSpec& f) { set_scale(f, "blk.1.attn_v.weight", 0, 0, 0x7c00); }},
    {"infinite_scale_of_a_gate",
     [](FileSpec& f) { set_scale(f, "blk.0.ffn_gate.weight", 19, 1, 0xfc00); }},
    {"nan_scale_of_the_output",
     [](FileSpec& f) { set_scale(f, "blk.1.ffn_down.weight", 35, 0, 0xfe00); }},
    {"nan_scale_of_an_embedding",
     [](FileSpec& f) { set_scale(f, "token_embd.weight", 7, 1, 0x7e00); }},
    {"huge_norm", [](FileSpec& f) { set_float(f, "blk.0.ffn_norm.weight", 3, 3e38f); }},
    {"squares_that_overflow", [](FileSpec& f) { set_float(f, "blk.0.ffn_down.bias", 0, 1e20f); }},
    {"keys_beyond_fp16", [](FileSpec& f) { set_float(f, "blk.1.attn_k_norm.weight", 2, -1e10f); }},
    {"denormal_norm",
     [](FileSpec& f) {
         for (size_t i = 0; i < 36; ++i) set_float(f, "blk.1.attn_norm.weight", i, 1e-42f);
     }},
    {"negative_zero_scales",
     [](FileSpec& f) {
         for (size_t row = 0; row < 12; ++row) set_scale(f, "blk.0.attn_q.weight", row, 1, 0x8000);
     }},
};

// The same of a vision part.
const Damage kVisionDamages[] = {
    {"vision_nan_scale_of_patches",
     [](FileSpec& f) { set_scale(f, "v.patch_embd.weight", 39, 1, 0x7e01); }},
    {"vision_keys_beyond_fp16",
     [](FileSpec& f) { set_float(f, "v.blk.0.attn_k.bias", 4, 70000.0f); }},
    {"vision_infinite_position",
     [](FileSpec& f) { set_float(f, "v.position_embd.weight", 77, INFINITY); }},
    {"vision_squares_that_overflow",
     [](FileSpec& f) { set_float(f, "v.blk.1.ffn_down.bias", 0, 1e20f); }},
    {"vision_huge_pixels", [](FileSpec& f) { set_float(f, "v.pixel_values", 300, 3e38f); }},
};

// Sound models, for what damages find in operations that random_model() alone does not have.
const char* const kForms[] = {
    "layer norms with biases",
    "norms around the branches",
    "norms of the stream",
    "a norm of the embedding",
    "parallel branches",
    "learned positions",
    "ALiBi",
    "q/k norms over the width",
    "limits of q, k, v",
    "a cap of scores",
    "a cap of logits",
    "plain GELU with scales",
    "two rotary tables",
    "experts",
    "experts of the second layer, renormalised",
    "experts by sparsemixer",
    "a shared expert with a router",
    "5 and 6 bits",
};

// What the tests encode takes a sanitizer long; a few squares have the same edges.
void make_smaller(VisionForm& form) {
    if (form.rotary)
        form.image_size = 32;  // two windows of four
    else if (form.bidirectional || !form.blocks.empty())
        form.image_size = 23;
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) {
    using namespace awqe::test;
    if (argc != 2) return 2;
    const std::filesystem::path folder = argv[1];
    std::filesystem::create_directories(folder / "evaluate");
    bool written = write(folder / "small.awq.gguf", small_model());
    for (const Damage& damage : kDamages) {
        FileSpec file = random_model();
        damage.change(file);
        written &= write(folder / "evaluate" / (std::string(damage.name) + ".awq.gguf"), file);
    }
    for (ModelForm form : model_forms()) {
        if (std::count(std::begin(kForms), std::end(kForms), std::string(form.name)) == 0) continue;
        form.context_length = 16;
        form.experts = std::min(form.experts, 6u);
        std::string name = form.name;
        for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
        written &= write(folder / "evaluate" / (name + ".awq.gguf"), random_model(form));
    }
    for (VisionForm form : vision_forms()) {
        make_smaller(form);
        std::string name = form.name;
        for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
        written &= write(folder / "evaluate" / ("vision_" + name + ".awq.gguf"),
                         random_vision_model(form));
    }
    for (const Damage& damage : kVisionDamages) {
        FileSpec file = random_vision_model(vision_forms()[3]);
        damage.change(file);
        written &= write(folder / "evaluate" / (std::string(damage.name) + ".awq.gguf"), file);
    }
    return written ? 0 : 1;
}
