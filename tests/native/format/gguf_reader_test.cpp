// A bad file for every rule of FORMAT.md section 4, in the order of the rules, and the sentence
// that each is refused with.
#include "native/format/gguf_reader.h"

#include <cmath>
#include <functional>
#include <limits>

#include "tests/native/support/model_bytes.h"
#include "tests/native/support/refused.h"

namespace awqe::test {
namespace {

// small_model() with one change.
FileSpec broken(const std::function<void(FileSpec&)>& change) {
    FileSpec file = small_model();
    change(file);
    return file;
}

Bytes header_of(uint64_t tensors, uint64_t keys) {
    Bytes bytes = {'G', 'G', 'U', 'F'};
    append<uint32_t>(bytes, 3);
    append(bytes, tensors);
    append(bytes, keys);
    return bytes;
}

// Writes `value` into the header of a packed matrix.
template <class T>
FileSpec with_matrix_field(const std::string& matrix, size_t offset, T value) {
    FileSpec file = small_model();
    std::memcpy(file.tensor(matrix).data.data() + offset, &value, sizeof(T));
    return file;
}

}  // namespace

TEST(the_small_model_breaks_no_rule) {
    const AlignedBytes bytes(small_model().build());
    const Model model(bytes.data(), bytes.size());
    CHECK_EQUAL(model.architecture().feed_forward_size, 12u);
    CHECK_EQUAL(model.layers().size(), size_t{1});
    CHECK_EQUAL(model.layers()[0].value.bias[3], 4.0f);
    CHECK(model.layers()[0].query.bias == nullptr);
    CHECK_EQUAL(model.layers()[0].value.weight.bits, 3u);
    CHECK(model.head().weight.blocks == model.embedding().blocks);
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(model.embedding().blocks) % 64, uintptr_t{0});
    CHECK(model.file().find_entry("awq_edge.decoder.layers") != nullptr);
    CHECK(model.file().find_entry("awq_edge.decoder.layer") == nullptr);
    CHECK(model.file().find_tensor("zzz") == nullptr);
}

TEST(unknown_keys_of_every_type_are_ignored_but_readable) {
    FileSpec file = small_model();
    Bytes texts;
    append<uint32_t>(texts, kText);
    append<uint64_t>(texts, 200);
    for (int i = 0; i < 200; ++i) append_string(texts, "text " + std::to_string(i));
    file.set("other.texts", kList, texts);
    Bytes numbers;
    append<uint32_t>(numbers, 3);  // i16
    append<uint64_t>(numbers, 3);
    for (int16_t n : {1, 2, -300}) append(numbers, n);
    file.set("other.numbers", kList, numbers);
    file.set("other.negative", kI32, bytes_of<int32_t>(-7));
    file.set("other.large", kU64, bytes_of<uint64_t>(1ull << 60));
    file.set("other.small", kU8, {255});
    file.set("other.real", 12, bytes_of(0.25));
    file.set("other.int8", 1, {0xFE});
    const AlignedBytes bytes(file.build());
    const GgufFile read(bytes.data(), bytes.size());
    CHECK_EQUAL(read.find_entry("other.negative")->value.as_signed(), int64_t{-7});
    CHECK_EQUAL(read.find_entry("other.int8")->value.as_signed(), int64_t{-2});
    CHECK_EQUAL(read.find_entry("other.large")->value.as_unsigned(), uint64_t{1} << 60);
    CHECK_EQUAL(read.find_entry("other.small")->value.as_unsigned(), uint64_t{255});
    CHECK_EQUAL(read.find_entry("other.real")->value.as_real(), 0.25);
    const Value& list = read.find_entry("other.texts")->value;
    CHECK_EQUAL(list.count, uint64_t{200});
    CHECK(std::equal(list.data, list.data + list.bytes, texts.begin() + 12, texts.end()));
    CHECK_EQUAL(read.find_entry("other.numbers")->value.element(2).as_signed(), int64_t{-300});
}

TEST(rule_1_header) {
    check_refused(Bytes{}, "has 0 bytes, a GGUF header alone needs 24");
    check_refused(Bytes(23, 'G'), "has 23 bytes");
    check_refused(broken([](FileSpec& f) { f.magic = "GGUX"; }), "magic GGUF");
    check_refused(broken([](FileSpec& f) { f.version = 2; }), "GGUF version 2, it must be 3");
    check_refused(broken([](FileSpec& f) { f.version = 4; }), "GGUF version 4, it must be 3");
}

TEST(rule_2_counts) {
    check_refused(header_of(0, 65537), "65537 metadata entries");
    check_refused(header_of(65537, 0), "65537 tensors");
    check_refused(header_of(0, std::numeric_limits<uint64_t>::max()), "metadata entries");
    // At the limit, the next rule speaks.
    check_refused(header_of(65536, 65536), "the file ends inside the name of a metadata key");
}

TEST(rule_2_names) {
    check_refused(broken([](FileSpec& f) { f.set_u32("", 1); }),
                  "name of a metadata key has 0 bytes");
    check_refused(broken([](FileSpec& f) { f.set_u32(std::string(257, 'k'), 1); }),
                  "name of a metadata key has 257 bytes");
    check_accepted(broken([](FileSpec& f) { f.set_u32(std::string(256, 'k'), 1); }));
    check_refused(broken([](FileSpec& f) { f.set_u32(std::string("a\0b", 3), 1); }), "byte 0x00");
    check_refused(broken([](FileSpec& f) { f.set_u32("caf\xC3\xA9", 1); }), "byte 0xc3");
    check_refused(broken([](FileSpec& f) { f.set_floats("", {1}); }),
                  "name of a tensor has 0 bytes");
    check_refused(broken([](FileSpec& f) { f.set_floats(std::string(257, 't'), {1}); }),
                  "name of a tensor has 257 bytes");
    check_refused(broken([](FileSpec& f) { f.set_floats("a b", {1}); }), "byte 0x20");
    check_accepted(broken([](FileSpec& f) { f.set_floats(std::string(256, 't'), {1}); }));
}

TEST(rule_2_strings_and_arrays) {
    // The announced length is refused before anybody looks whether the file has the bytes.
    const auto long_string = [](uint64_t length) {
        return broken([&](FileSpec& f) { f.set("text", kText, bytes_of(length)); });
    };
    check_refused(long_string((64u << 20) + 1), "key text holds a string of 67108865 bytes");
    check_refused(long_string(64u << 20), "the file ends inside the value of key text");
    const auto array = [](uint32_t type, uint64_t count) {
        return broken([&](FileSpec& f) {
            Bytes value = bytes_of(type);
            append(value, count);
            f.set("list", kList, value);
        });
    };
    check_refused(array(kU32, (1u << 24) + 1), "key list holds an array of 16777217 elements");
    check_refused(array(kU32, 1u << 24), "the file ends inside the value of key list");
    check_refused(array(kList, 1), "key list holds an array of arrays");
    check_refused(broken([](FileSpec& f) {
                      Bytes value = bytes_of<uint32_t>(kText);
                      append<uint64_t>(value, 1);
                      append<uint64_t>(value, (64u << 20) + 1);
                      f.set("list", kList, value);
                  }),
                  "key list holds a string of 67108865 bytes");
}

TEST(rule_3_value_types) {
    check_refused(broken([](FileSpec& f) { f.set("odd", 13, {0}); }), "key odd has value type 13");
    check_refused(broken([](FileSpec& f) {
                      Bytes value = bytes_of<uint32_t>(99);
                      append<uint64_t>(value, 0);
                      f.set("odd", kList, value);
                  }),
                  "key odd has value type 99");
    check_refused(broken([](FileSpec& f) { f.set("odd", kBoolean, {2}); }),
                  "key odd holds the boolean 2");
    check_refused(broken([](FileSpec& f) {
                      Bytes value = bytes_of<uint32_t>(kBoolean);
                      append<uint64_t>(value, 2);
                      value.push_back(1);
                      value.push_back(255);
                      f.set("odd", kList, value);
                  }),
                  "key odd holds the boolean 255");
}

TEST(rule_4_end_of_file) {
    check_refused(header_of(0, 1), "the file ends inside the name of a metadata key");
    Bytes one_key = header_of(0, 1);
    append_string(one_key, "text");
    check_refused(one_key, "the file ends inside the value of key text");
    FileSpec more_tensors = small_model();
    more_tensors.announced_tensors = 65536;
    check_refused(more_tensors, "the");
    // 2^62 floats: their bytes need 65 bits.
    check_refused(
        broken([](FileSpec& f) { f.tensor("output_norm.weight").dimensions = {1ull << 62}; }),
        "more bytes than 64 bits can count");
    check_refused(broken([](FileSpec& f) {
                      f.tensor("output_norm.weight").dimensions.assign(1u << 16, 1);
                      f.tensors.back().data.clear();
                  }),
                  "has 65536 dimensions");
}

TEST(rule_5_names_are_unique) {
    check_refused(broken([](FileSpec& f) { f.keys.push_back(f.keys.front()); }),
                  "key general.architecture occurs twice");
    check_refused(broken([](FileSpec& f) { f.tensors.push_back(f.tensor("output_norm.weight")); }),
                  "tensor output_norm.weight occurs twice");
}

TEST(rule_6_kind_of_file) {
    check_refused(broken([](FileSpec& f) { f.set_text("general.architecture", "llama"); }),
                  "general.architecture is 'llama'", AWQE_UNSUPPORTED);
    check_refused(broken([](FileSpec& f) { f.set_u32("awq_edge.format_version", 2); }),
                  "awq_edge.format_version is 2", AWQE_UNSUPPORTED);
    check_refused(broken([](FileSpec& f) { f.set_text("awq_edge.layout", "r8k32"); }),
                  "awq_edge.layout is 'r8k32'", AWQE_UNSUPPORTED);
    check_refused(broken([](FileSpec& f) { f.set_u32("general.alignment", 32); }),
                  "general.alignment is 32, it must be 64");
    for (const char* key : {"general.architecture", "general.alignment", "awq_edge.format_version",
                            "awq_edge.layout"}) {
        check_refused(broken([&](FileSpec& f) { f.erase_key(key); }),
                      std::string("the required key ") + key + " is missing");
        check_refused(broken([&](FileSpec& f) { f.set(key, kBoolean, {1}); }),
                      std::string("key ") + key + " has type bool");
    }
}

TEST(rule_7_every_required_key) {
    size_t required = 0;
    for (const KeySpec& k : small_model().keys) {
        check_refused(broken([&](FileSpec& f) { f.erase_key(k.key); }),
                      "the required key " + k.key + " is missing");
        check_refused(broken([&](FileSpec& f) { f.set(k.key, 12, bytes_of(1.0)); }),
                      "key " + k.key + " has type f64");
        ++required;
    }
    CHECK_EQUAL(required, size_t{26});
}

TEST(rule_7_types_of_optional_keys) {
    for (const char* key :
         {"general.name", "awq_edge.quantization.calibration_sha256", "tokenizer.huggingface.json",
          "tokenizer.chat_template", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
          "tokenizer.ggml.add_bos_token", "awq_edge.tokenizer.eos_token_ids"}) {
        check_refused(broken([&](FileSpec& f) { f.set(key, 12, bytes_of(1.0)); }),
                      std::string("key ") + key + " has type f64");
    }
    check_accepted(broken([](FileSpec& f) {
        f.set("awq_edge.tokenizer.eos_token_ids", kList, u32_array({1, 2}));
        f.set_text("tokenizer.chat_template", "");
    }));
}

TEST(rule_7_limits) {
    const auto limit = [](const char* name, uint32_t value, const std::string& sentence) {
        const std::string key = std::string("awq_edge.decoder.") + name;
        check_refused(broken([&](FileSpec& f) { f.set_u32(key, value); }),
                      "key " + key + " is " + std::to_string(value) + ", " + sentence);
    };
    for (const char* name : {"layers", "hidden_size", "vocabulary_size", "context_length", "heads",
                             "kv_heads", "head_size", "feed_forward_size"}) {
        limit(name, 0, "allowed are 1 to ");
    }
    limit("layers", 1025, "allowed are 1 to 1024");
    limit("hidden_size", (1u << 20) + 1, "allowed are 1 to 1048576");
    limit("feed_forward_size", (1u << 20) + 1, "allowed are 1 to 1048576");
    limit("heads", (1u << 20) + 1, "allowed are 1 to 1048576");
    limit("kv_heads", (1u << 20) + 1, "allowed are 1 to 1048576");
    limit("vocabulary_size", (1u << 24) + 1, "allowed are 1 to 16777216");
    limit("context_length", (1u << 24) + 1, "allowed are 1 to 16777216");
    limit("head_size", 258, "allowed are 1 to 256");
    limit("head_size", 5, "it must be even");

    check_refused(broken([](FileSpec& f) { f.set_u32("awq_edge.decoder.kv_heads", 3); }),
                  "heads is 2, which is not a multiple of the 3");
    check_refused(broken([](FileSpec& f) { f.set_u32("awq_edge.decoder.heads", 1u << 20); }),
                  "heads times awq_edge.decoder.head_size is 4194304");
    for (const char* name : {"norm_epsilon", "rope_theta"}) {
        for (float value : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
            const std::string key = std::string("awq_edge.decoder.") + name;
            check_refused(broken([&](FileSpec& f) { f.set(key, kF32, bytes_of(value)); }),
                          "key " + key + " is ");
        }
    }
    check_refused(broken([](FileSpec& f) { f.set_text("awq_edge.decoder.activation", "tanh"); }),
                  "activation is 'tanh', allowed are silu");
    check_refused(broken([](FileSpec& f) {
                      f.set("awq_edge.decoder.sliding_windows", kList, u32_array({0, 0}));
                  }),
                  "sliding_windows has 2 elements for 1 layers");
    check_refused(broken([](FileSpec& f) {
                      Bytes value = bytes_of<uint32_t>(kI32);
                      append<uint64_t>(value, 1);
                      append<int32_t>(value, 0);
                      f.set("awq_edge.decoder.sliding_windows", kList, value);
                  }),
                  "sliding_windows is an array of i32, it must be one of u32");
    check_refused(broken([](FileSpec& f) { f.set_text("awq_edge.sha256", std::string(63, 'a')); }),
                  "awq_edge.sha256 does not hold 64");
    check_refused(broken([](FileSpec& f) { f.set_text("awq_edge.sha256", std::string(64, 'G')); }),
                  "awq_edge.sha256 does not hold 64");
}

TEST(rule_8_tensor_types) {
    const auto typed = [](uint32_t type) {
        return broken([&](FileSpec& f) { f.tensor("output_norm.weight").type = type; });
    };
    check_refused(typed(2), "tensor output_norm.weight has type Q4_0");
    check_refused(typed(1), "tensor output_norm.weight has type F16");
    check_refused(typed(39), "tensor output_norm.weight has type MXFP4");
    check_refused(typed(4), "tensor output_norm.weight has type number 4");
    check_refused(typed(40), "tensor output_norm.weight has type number 40");
    check_refused(broken([](FileSpec& f) { f.tensor("output_norm.weight").dimensions = {4, 2}; }),
                  "tensor output_norm.weight has 2 dimensions");
    check_refused(broken([](FileSpec& f) { f.tensor("blk.0.attn_q.weight").dimensions = {}; }),
                  "tensor blk.0.attn_q.weight has 0 dimensions");
    check_refused(broken([](FileSpec& f) { f.tensor("output_norm.weight").dimensions = {0}; }),
                  "tensor output_norm.weight has no elements");
}

TEST(rule_9_places_of_tensors) {
    check_refused(broken([](FileSpec& f) { f.tensor("output_norm.weight").offset = 32; }),
                  "lies at offset 32, which is not a multiple of 64");
    check_refused(broken([](FileSpec& f) { f.tensor("output_norm.weight").offset = 1ll << 40; }),
                  "tensor output_norm.weight reaches past the end of the file");
    check_refused(
        broken([](FileSpec& f) { f.tensor("output_norm.weight").dimensions = {1u << 20}; }),
        "tensor output_norm.weight reaches past the end of the file");
    check_refused(broken([](FileSpec& f) {
                      f.tensor("output_norm.weight").offset =
                          std::numeric_limits<int64_t>::max() - 63;
                      f.tensor("output_norm.weight").dimensions = {1ull << 61};
                  }),
                  "tensor output_norm.weight reaches past the end of the file");
    check_refused(broken([](FileSpec& f) { f.tensors[1].offset = 64; }),
                  "tensors token_embd.weight and output_norm.weight overlap");
    check_refused(broken([](FileSpec& f) { f.tensors[1].offset = 0; }), "overlap");
}

TEST(rule_10_matrix_headers) {
    const std::string q = "blk.0.attn_q.weight";
    check_refused(with_matrix_field<uint8_t>(q, 3, 'F'),
                  "matrix " + q + " does not begin with the magic");
    check_refused(with_matrix_field<uint32_t>(q, 4, 2), "matrix " + q + " has layout 2");
    check_refused(with_matrix_field<uint64_t>(q, 8, 0), "matrix " + q + " has 0 rows");
    check_refused(with_matrix_field<uint64_t>(q, 8, (1u << 24) + 1), "has 16777217 rows");
    check_refused(with_matrix_field<uint64_t>(q, 8, ~uint64_t{0}), "has 18446744073709551615 rows");
    check_refused(with_matrix_field<uint64_t>(q, 16, 0), "matrix " + q + " has 0 columns");
    check_refused(with_matrix_field<uint64_t>(q, 16, (1u << 20) + 1), "has 1048577 columns");
    for (uint32_t bits : {0u, 1u, 7u, 9u, 16u}) {
        check_refused(with_matrix_field(q, 24, bits), "has " + std::to_string(bits) + " bits");
    }
    for (uint32_t group : {0u, 16u, 33u, 96u, 256u}) {
        check_refused(with_matrix_field(q, 28, group), "has group size " + std::to_string(group));
    }
    for (size_t offset = 32; offset < 64; ++offset) {
        check_refused(with_matrix_field<uint8_t>(q, offset, 1), "reserved part");
    }
    check_refused(with_matrix_field<uint64_t>(q, 8, 9),
                  "matrix " + q + " has 320 bytes, its 9 x 8 codes need");
    check_refused(with_matrix_field<uint64_t>(q, 16, 65), "codes need");
    check_refused(with_matrix_field<uint32_t>(q, 24, 8), "codes need");
    check_refused(broken([&](FileSpec& f) { f.tensor(q).dimensions = {63}; }),
                  "matrix " + q + " has 63 bytes, its header alone needs 64");
    check_refused(broken([](FileSpec& f) {
                      f.tensor("more").type = 24;
                      f.tensor("more").data = Bytes(64);
                      f.tensor("more").dimensions = {64};
                  }),
                  "matrix more does not begin with the magic");
}

TEST(rule_11_every_required_tensor) {
    for (const TensorSpec& t : small_model().tensors) {
        const bool optional = t.name.find(".bias") != std::string::npos;
        if (!optional) {
            check_refused(broken([&](FileSpec& f) { f.erase_tensor(t.name); }),
                          "the tensor " + t.name + " is missing");
        }
        if (t.type == 0) {
            check_refused(
                broken([&](FileSpec& f) { f.set_floats(t.name, std::vector<float>(7, 1)); }),
                "tensor " + t.name + " is F32[7], it must be F32[");
            check_refused(broken([&](FileSpec& f) { f.set_matrix(t.name, 4, 4); }),
                          "tensor " + t.name + " is I8[");
            for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
                check_refused(
                    broken([&](FileSpec& f) {
                        std::memcpy(f.tensor(t.name).data.data() + 4, &bad, 4);
                    }),
                    "tensor " + t.name + " holds a number that is not finite, at index 1");
            }
        } else {
            check_refused(broken([&](FileSpec& f) { f.set_matrix(t.name, 7, 8); }),
                          "matrix " + t.name + " is [7, 8], it must be [");
            check_refused(broken([&](FileSpec& f) { f.set_floats(t.name, {1}); }),
                          "tensor " + t.name + " is F32, it must be a packed matrix");
        }
    }
}

TEST(rule_11_frequencies_have_a_bound) {
    const auto with = [](uint32_t context, float frequency) {
        return broken([&](FileSpec& f) {
            f.set_u32("awq_edge.decoder.context_length", context);
            f.set_floats("rope.inverse_frequencies", {0.5f, frequency});
        });
    };
    // 2^22 over the context length, and never less than 1.
    check_accepted(with(64, 65536.0f));
    check_accepted(with(64, -65536.0f));
    check_accepted(with(1u << 24, -1.0f));
    check_refused(with(64, 65537.0f),
                  "tensor rope.inverse_frequencies holds 65537 at index 1; with a context of 64 "
                  "the largest magnitude allowed is 65536");
    check_refused(with(64, -3e38f), "tensor rope.inverse_frequencies holds -3e+38 at index 1");
    check_refused(with(1u << 24, 1.25f), "the largest magnitude allowed is 1");
}

TEST(rule_11_flags_agree_with_tensors) {
    check_refused(broken([](FileSpec& f) { f.set_matrix("output.weight", 5, 8); }),
                  "there is a tensor output.weight, although awq_edge.decoder.tied_head is true");
    check_refused(broken([](FileSpec& f) { f.set("awq_edge.decoder.tied_head", kBoolean, {0}); }),
                  "the tensor output.weight is missing");
    check_refused(
        broken([](FileSpec& f) { f.set_floats("blk.0.attn_k_norm.weight", {1, 1, 1, 1}); }),
        "attn_k_norm.weight, although awq_edge.decoder.qk_norm is false");
    check_refused(broken([](FileSpec& f) { f.set("awq_edge.decoder.qk_norm", kBoolean, {1}); }),
                  "the tensor blk.0.attn_q_norm.weight is missing");
}

TEST(rule_11_group_sizes_of_a_shared_input) {
    check_refused(broken([](FileSpec& f) { f.set_matrix("blk.0.attn_k.weight", 4, 8, 4, 64); }),
                  "blk.0.attn_q has group size 32 and attn_k 64, they must be equal");
    check_refused(broken([](FileSpec& f) { f.set_matrix("blk.0.attn_v.weight", 4, 8, 4, 128); }),
                  "blk.0.attn_q has group size 32 and attn_v 128, they must be equal");
    check_refused(broken([](FileSpec& f) { f.set_matrix("blk.0.ffn_up.weight", 12, 8, 4, 64); }),
                  "blk.0.ffn_gate has group size 32 and ffn_up 64, they must be equal");
}

TEST(rule_12_tail) {
    check_refused(broken([](FileSpec& f) { f.tail = 0; }), "must end with at least 64 bytes");
    // The last tensor is a packed matrix, so its own padding adds nothing.
    check_refused(broken([](FileSpec& f) { f.tail = 63; }), "must end with at least 64 bytes");
    check_accepted(broken([](FileSpec& f) { f.tail = 65; }));
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
