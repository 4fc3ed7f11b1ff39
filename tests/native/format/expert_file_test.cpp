// Files with experts that break one rule each (native/format/FORMAT.md, section 4, rules 7 and 11),
// and the sentence that each is refused with; which bytes count as read for a token.
#include <cmath>
#include <functional>
#include <string>

#include "native/failure/failure.h"
#include "native/runtime/model.h"
#include "tests/native/support/check.h"
#include "tests/native/support/model_bytes.h"

namespace awqe::test {
namespace {

const std::string kDecoder = "awq_edge.decoder.";

// Two layers, the second with five experts of which two are chosen, and a shared one.
FileSpec expert_model() {
    FileSpec file = small_model();
    file.set_u32(kDecoder + "layers", 2);
    file.set(kDecoder + "sliding_windows", kList, u32_array({0, 0}));
    file.set_u32(kDecoder + "experts", 5);
    file.set_u32(kDecoder + "experts_per_token", 2);
    file.set_u32(kDecoder + "expert_size", 12);
    file.set_u32(kDecoder + "shared_expert_size", 16);
    file.set(kDecoder + "expert_layers", kList, u32_array({0, 1}));
    for (const TensorSpec& t : small_model().tensors) {
        if (t.name.rfind("blk.0.attn", 0) != 0 && t.name != "blk.0.ffn_norm.weight") continue;
        TensorSpec copy = t;
        copy.name[4] = '1';
        file.tensors.push_back(copy);
    }
    file.set_floats("blk.1.ffn_router.weight", std::vector<float>(5 * 8, 0.5f));
    const auto expert = [&](const std::string& name, uint64_t width) {
        file.set_matrix(name + "ffn_gate.weight", width, 8);
        file.set_matrix(name + "ffn_up.weight", width, 8);
        file.set_matrix(name + "ffn_down.weight", 8, width);
    };
    for (int e = 0; e < 5; ++e) expert("blk.1.expert." + std::to_string(e) + ".", 12);
    expert("blk.1.shared.", 16);
    file.set_floats("blk.1.shared_router.weight", std::vector<float>(8, 0.5f));
    return file;
}

void check_refused(const std::function<void(FileSpec&)>& change, const std::string& sentence) {
    FileSpec file = expert_model();
    change(file);
    const AlignedBytes bytes(file.build());
    try {
        const Model model(bytes.data(), bytes.size());
    } catch (const Failure& failure) {
        if (std::string(failure.what()).find(sentence) != std::string::npos) return;
        fail(__FILE__, __LINE__, std::string(failure.what()) + ", not: " + sentence);
    }
    fail(__FILE__, __LINE__, "accepted: " + sentence);
}

TEST(the_model_breaks_no_rule_and_counts_the_chosen_experts) {
    const AlignedBytes bytes(expert_model().build());
    const Model model(bytes.data(), bytes.size());
    const Architecture& a = model.architecture();
    CHECK_EQUAL(a.experts, 5u);
    CHECK_EQUAL(a.experts_per_token, 2u);
    CHECK(a.routing == Routing::kSoftmax);
    CHECK(model.layers()[0].experts.router == nullptr);
    CHECK_EQUAL(model.layers()[0].feed_forward.up.weight.rows, 12u);
    CHECK_EQUAL(model.layers()[1].feed_forward.up.weight.rows, 0u);
    CHECK_EQUAL(model.layers()[1].experts.all.size(), 5u);
    CHECK_EQUAL(model.layers()[1].experts.shared.up.weight.rows, 16u);
    // Three matrices of three or two blocks: header apart, as all are read from one mapping.
    const PackedMatrix up = packed_matrix_layout(12, 8, 4, 32);
    const PackedMatrix down = packed_matrix_layout(8, 12, 4, 32);
    const uint64_t expert = 2 * 3 * up.block_bytes + 2 * down.block_bytes;
    FileSpec all = expert_model();
    all.set_u32(kDecoder + "experts_per_token", 5);
    const AlignedBytes all_bytes(all.build());
    CHECK_EQUAL(Model(all_bytes.data(), all_bytes.size()).decode_bytes() - model.decode_bytes(),
                3 * expert);
}

TEST(rule_7_experts) {
    const auto key = [](const char* name, uint32_t value) {
        return [=](FileSpec& f) { f.set_u32(kDecoder + name, value); };
    };
    check_refused(key("experts", 0), "experts is 0, allowed are 1 to 1024");
    check_refused(key("experts", 1025), "experts is 1025, allowed are 1 to 1024");
    check_refused(key("experts_per_token", 0), "experts_per_token is 0");
    check_refused(key("experts_per_token", 6), "experts_per_token is 6, which is more than the 5");
    check_refused(key("expert_size", 0), "expert_size is 0");
    check_refused(key("shared_expert_size", 0), "shared_expert_size is 0");
    for (const char* name : {"experts_per_token", "expert_size"}) {
        check_refused([&](FileSpec& f) { f.erase_key(kDecoder + name); },
                      "the required key " + kDecoder + name + " is missing");
    }
    check_refused([](FileSpec& f) { f.erase_key(kDecoder + "experts"); },
                  "there is a key awq_edge.decoder.experts_per_token, although there is no");
    check_refused([](FileSpec& f) { f.set_text(kDecoder + "routing", "hash"); },
                  "routing is 'hash', allowed are softmax, softmax_renormalised, sparsemixer");
    check_refused(
        [](FileSpec& f) {
            f.set_text(kDecoder + "routing", "sparsemixer");
            f.set_u32(kDecoder + "experts_per_token", 3);
        },
        "experts_per_token is 3, but awq_edge.decoder.routing is sparsemixer");
    for (const float bad : {-1.0f, std::nanf(""), INFINITY}) {
        check_refused([&](FileSpec& f) { f.set(kDecoder + "router_epsilon", kF32, bytes_of(bad)); },
                      "router_epsilon is ");
    }
    for (const auto& layers : {std::vector<uint32_t>{0, 2}, {0, 0}}) {
        check_refused(
            [&](FileSpec& f) { f.set(kDecoder + "expert_layers", kList, u32_array(layers)); },
            "expert_layers must hold 0 or 1 for each layer, and 1 for some");
    }
    check_refused([](FileSpec& f) { f.set(kDecoder + "expert_layers", kList, u32_array({1})); },
                  "expert_layers has 1 elements for 2 layers");
    check_refused([](FileSpec& f) { f.set_text(kDecoder + "feed_forward", "plain"); },
                  "experts is 5, which goes with gated feed-forwards behind a norm alone");
    check_refused([](FileSpec& f) { f.set(kDecoder + "parallel", kBoolean, {1}); },
                  "experts is 5, which goes with");
    check_refused([](FileSpec& f) { f.set_text(kDecoder + "norm_places", "both"); },
                  "experts is 5, which goes with");
}

TEST(rule_11_experts) {
    const std::string layer = "blk.1.";
    for (const char* name : {"ffn_router", "expert.0.ffn_gate", "expert.4.ffn_up",
                             "expert.2.ffn_down", "shared.ffn_gate", "shared.ffn_down"}) {
        const std::string tensor = layer + name + ".weight";
        check_refused([&](FileSpec& f) { f.erase_tensor(tensor); },
                      "the tensor " + tensor + " is missing");
    }
    check_refused([&](FileSpec& f) { f.set_floats(layer + "ffn_router.weight", {1, 2, 3}); },
                  "tensor blk.1.ffn_router.weight is F32[3], it must be F32[40]");
    check_refused([&](FileSpec& f) { f.set_floats(layer + "shared_router.weight", {1, 2, 3}); },
                  "tensor blk.1.shared_router.weight is F32[3], it must be F32[8]");
    check_refused([&](FileSpec& f) { f.set_matrix(layer + "ffn_router.weight", 5, 8); },
                  "tensor blk.1.ffn_router.weight is I8[");
    check_refused([&](FileSpec& f) { f.set_matrix(layer + "expert.3.ffn_up.weight", 13, 8); },
                  "matrix blk.1.expert.3.ffn_up.weight is [13, 8], it must be [12, 8]");
    check_refused(
        [&](FileSpec& f) { f.set_matrix(layer + "expert.3.ffn_up.weight", 12, 8, 4, 64); },
        "blk.1.expert.0.ffn_gate has group size 32 and expert.3.ffn_up 64");
    check_refused(
        [&](FileSpec& f) { f.set_matrix(layer + "expert.3.ffn_down.weight", 8, 12, 4, 64); },
        "blk.1.expert.0.ffn_down has group size 32 and expert.3.ffn_down 64");
    check_refused(
        [&](FileSpec& f) { f.set_matrix(layer + "shared.ffn_gate.weight", 16, 8, 4, 64); },
        "blk.1.expert.0.ffn_gate has group size 32 and shared.ffn_gate 64");
    check_refused(
        [&](FileSpec& f) { f.set_floats(layer + "expert.1.ffn_up.bias", std::vector<float>(12)); },
        "there is a tensor blk.1.expert.1.ffn_up.bias, although experts have no biases");
    check_refused([&](FileSpec& f) { f.erase_key(kDecoder + "shared_expert_size"); },
                  "there is a tensor blk.1.shared_router.weight, although there is no");
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
