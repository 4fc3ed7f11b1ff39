// From a container's keys and tensors to a decoder's description and weights; see model.h. Numbers
// in comments are the rules of FORMAT.md section 4.
#include "native/runtime/model.h"

#include <cinttypes>
#include <cmath>
#include <string>

#include "native/failure/failure.h"

namespace awqe {
namespace {

constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxPosition = 1u << 24;  // up to there a position is exact as a float
constexpr uint32_t kMaxVocabulary = 1u << 24;
constexpr uint32_t kMaxHeadSize = 256;

// ---- rule 7: keys -------------------------------------------------------------------------------

const Entry& need_entry(const GgufFile& file, const char* key, ValueType type) {
    const Entry* entry = file.find_entry(key);
    if (entry == nullptr) fail(AWQE_FILE_INVALID, "the required key %s is missing", key);
    if (entry->value.type != type) {
        fail(AWQE_FILE_INVALID, "key %s has type %s, it must be %s", key,
             value_type_name(entry->value.type), value_type_name(type));
    }
    return *entry;
}

void allow_entry(const GgufFile& file, const char* key, ValueType type) {
    if (file.find_entry(key) != nullptr) need_entry(file, key, type);
}

const Entry& need_u32_array(const GgufFile& file, const char* key) {
    const Entry& entry = need_entry(file, key, ValueType::kArray);
    if (entry.value.element_type != ValueType::kUint32) {
        fail(AWQE_FILE_INVALID, "key %s is an array of %s, it must be one of u32", key,
             value_type_name(entry.value.element_type));
    }
    return entry;
}

uint32_t need_size(const GgufFile& file, const char* key, uint32_t most) {
    const uint64_t value = need_entry(file, key, ValueType::kUint32).value.as_unsigned();
    if (value == 0 || value > most) {
        fail(AWQE_FILE_INVALID, "key %s is %" PRIu64 ", allowed are 1 to %u", key, value, most);
    }
    return static_cast<uint32_t>(value);
}

float need_positive(const GgufFile& file, const char* key) {
    const double value = need_entry(file, key, ValueType::kFloat32).value.as_real();
    if (!std::isfinite(value) || value <= 0) {
        fail(AWQE_FILE_INVALID, "key %s is %g, it must be positive and finite", key, value);
    }
    return static_cast<float>(value);
}

bool need_bool(const GgufFile& file, const char* key) {
    return need_entry(file, key, ValueType::kBool).value.as_unsigned() != 0;
}

void check_sha256(const GgufFile& file) {
    constexpr const char* kKey = "awq_edge.sha256";
    const std::string_view digits = need_entry(file, kKey, ValueType::kString).value.as_string();
    if (digits.size() != 64 ||
        digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) {
        fail(AWQE_FILE_INVALID, "key %s does not hold 64 lower-case hexadecimal digits", kKey);
    }
}

std::vector<uint32_t> read_sliding_windows(const GgufFile& file, uint32_t layers) {
    constexpr const char* kKey = "awq_edge.decoder.sliding_windows";
    const Entry& entry = need_u32_array(file, kKey);
    if (entry.value.count != layers) {
        fail(AWQE_FILE_INVALID, "key %s has %" PRIu64 " elements for %u layers", kKey,
             entry.value.count, layers);
    }
    std::vector<uint32_t> windows(layers);
    for (uint32_t i = 0; i < layers; ++i) {
        windows[i] = static_cast<uint32_t>(entry.value.element(i).as_unsigned());
    }
    return windows;
}

// Keys that say how the file was made: the runtime does not use them, but whoever lists a file
// relies on them.
void check_provenance(const GgufFile& file) {
    check_sha256(file);
    need_positive(file, "awq_edge.decoder.rope_theta");
    need_entry(file, "awq_edge.decoder.rope_scaling", ValueType::kString);
    need_entry(file, "awq_edge.quantization.method", ValueType::kString);
    need_entry(file, "awq_edge.quantization.bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.group_size", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.head_bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.embedding_bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.tool_version", ValueType::kString);
    allow_entry(file, "awq_edge.quantization.calibration_sha256", ValueType::kString);
    allow_entry(file, "general.name", ValueType::kString);
    allow_entry(file, "tokenizer.huggingface.json", ValueType::kString);
    allow_entry(file, "tokenizer.chat_template", ValueType::kString);
    allow_entry(file, "tokenizer.ggml.bos_token_id", ValueType::kUint32);
    allow_entry(file, "tokenizer.ggml.eos_token_id", ValueType::kUint32);
    allow_entry(file, "tokenizer.ggml.add_bos_token", ValueType::kBool);
    constexpr const char* kEndIds = "awq_edge.tokenizer.eos_token_ids";
    if (file.find_entry(kEndIds) != nullptr) need_u32_array(file, kEndIds);
}

Architecture read_architecture(const GgufFile& file) {
    check_provenance(file);
    Architecture a = {};
    a.layers = need_size(file, "awq_edge.decoder.layers", kMaxLayers);
    a.hidden_size = need_size(file, "awq_edge.decoder.hidden_size", kMaxColumns);
    a.vocabulary_size = need_size(file, "awq_edge.decoder.vocabulary_size", kMaxVocabulary);
    a.context_length = need_size(file, "awq_edge.decoder.context_length", kMaxPosition);
    a.heads = need_size(file, "awq_edge.decoder.heads", kMaxColumns);
    a.kv_heads = need_size(file, "awq_edge.decoder.kv_heads", kMaxColumns);
    a.head_size = need_size(file, "awq_edge.decoder.head_size", kMaxHeadSize);
    a.feed_forward_size = need_size(file, "awq_edge.decoder.feed_forward_size", kMaxColumns);
    a.norm_epsilon = need_positive(file, "awq_edge.decoder.norm_epsilon");
    a.qk_norm = need_bool(file, "awq_edge.decoder.qk_norm");
    a.tied_head = need_bool(file, "awq_edge.decoder.tied_head");
    a.sliding_windows = read_sliding_windows(file, a.layers);
    if (a.heads % a.kv_heads != 0) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.heads is %u, which is not a multiple of the %u in "
             "awq_edge.decoder.kv_heads",
             a.heads, a.kv_heads);
    }
    if (a.head_size % 2 != 0) {
        fail(AWQE_FILE_INVALID, "key awq_edge.decoder.head_size is %u, it must be even",
             a.head_size);
    }
    const uint64_t query_size = uint64_t{a.heads} * a.head_size;
    if (query_size > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.heads times awq_edge.decoder.head_size is %" PRIu64
             ", at most %u is "
             "allowed",
             query_size, kMaxColumns);
    }
    const std::string activation(
        need_entry(file, "awq_edge.decoder.activation", ValueType::kString).value.as_string());
    if (activation == "silu") {
        a.activation = Activation::kSilu;
    } else if (activation == "gelu") {
        a.activation = Activation::kGelu;
    } else if (activation == "gelu_tanh") {
        a.activation = Activation::kGeluTanh;
    } else if (activation == "relu") {
        a.activation = Activation::kRelu;
    } else {
        fail(AWQE_FILE_INVALID,
             "key awq_edge.decoder.activation is '%.64s', allowed are silu, gelu, gelu_tanh, relu",
             activation.c_str());
    }
    return a;
}

// ---- rule 11: tensors ---------------------------------------------------------------------------

const Tensor& need_tensor(const GgufFile& file, const std::string& name) {
    const Tensor* tensor = file.find_tensor(name);
    if (tensor == nullptr) fail(AWQE_FILE_INVALID, "the tensor %s is missing", name.c_str());
    return *tensor;
}

// float32 [size]
const float* need_vector(const GgufFile& file, const std::string& name, uint64_t size) {
    const Tensor& tensor = need_tensor(file, name);
    if (tensor.packed || tensor.elements != size) {
        fail(AWQE_FILE_INVALID, "tensor %s is %s[%" PRIu64 "], it must be F32[%" PRIu64 "]",
             name.c_str(), tensor.packed ? "I8" : "F32", tensor.elements, size);
    }
    for (uint64_t i = 0; i < size; ++i) {
        if (!std::isfinite(tensor.floats[i])) {
            fail(AWQE_FILE_INVALID,
                 "tensor %s holds a number that is not finite, at index %" PRIu64, name.c_str(), i);
        }
    }
    return tensor.floats;
}

// Frequencies beyond what the reduction of an angle can resolve (FORMAT.md says why).
const float* need_frequencies(const GgufFile& file, const Architecture& a) {
    constexpr const char* kName = "rope.inverse_frequencies";
    const float* frequencies = need_vector(file, kName, a.head_size / 2);
    const float most = std::fmax(1.0f, 0x1p22f / static_cast<float>(a.context_length));
    for (uint32_t i = 0; i < a.head_size / 2; ++i) {
        if (std::fabs(frequencies[i]) > most) {
            fail(AWQE_FILE_INVALID,
                 "tensor %s holds %g at index %u; with a context of %u the largest magnitude "
                 "allowed is %g",
                 kName, static_cast<double>(frequencies[i]), i, a.context_length,
                 static_cast<double>(most));
        }
    }
    return frequencies;
}

PackedMatrix need_matrix(const GgufFile& file, const std::string& name, uint64_t rows,
                         uint64_t columns) {
    const Tensor& tensor = need_tensor(file, name);
    if (!tensor.packed) {
        fail(AWQE_FILE_INVALID, "tensor %s is F32, it must be a packed matrix", name.c_str());
    }
    if (tensor.matrix.rows != rows || tensor.matrix.columns != columns) {
        fail(AWQE_FILE_INVALID,
             "matrix %s is [%" PRIu64 ", %" PRIu64 "], it must be [%" PRIu64 ", %" PRIu64 "]",
             name.c_str(), tensor.matrix.rows, tensor.matrix.columns, rows, columns);
    }
    return tensor.matrix;
}

// `name` without ".weight" and ".bias".
Linear need_linear(const GgufFile& file, const std::string& name, uint64_t rows, uint64_t columns) {
    const std::string bias = name + ".bias";
    return {need_matrix(file, name + ".weight", rows, columns),
            file.find_tensor(bias) != nullptr ? need_vector(file, bias, rows) : nullptr};
}

// Matrices that read one quantised input.
void need_equal_groups(const std::string& layer, const char* first_name, const Linear& first,
                       const char* second_name, const Linear& second) {
    if (first.weight.group_size == second.weight.group_size) return;
    fail(AWQE_FILE_INVALID, "%s%s has group size %u and %s %u, they must be equal", layer.c_str(),
         first_name, first.weight.group_size, second_name, second.weight.group_size);
}

// What the key awq_edge.decoder.<flag> says must be what the file holds.
void need_absent(const GgufFile& file, const std::string& name, const char* reason) {
    if (file.find_tensor(name) != nullptr) {
        fail(AWQE_FILE_INVALID, "there is a tensor %s, although %s", name.c_str(), reason);
    }
}

LayerWeights read_layer(const GgufFile& file, const Architecture& a, uint32_t index) {
    const std::string layer = "blk." + std::to_string(index) + ".";
    LayerWeights w = {};
    w.attention_norm = need_vector(file, layer + "attn_norm.weight", a.hidden_size);
    w.query = need_linear(file, layer + "attn_q", a.query_size(), a.hidden_size);
    w.key = need_linear(file, layer + "attn_k", a.key_size(), a.hidden_size);
    w.value = need_linear(file, layer + "attn_v", a.key_size(), a.hidden_size);
    need_equal_groups(layer, "attn_q", w.query, "attn_k", w.key);
    need_equal_groups(layer, "attn_q", w.query, "attn_v", w.value);
    if (a.qk_norm) {
        w.query_norm = need_vector(file, layer + "attn_q_norm.weight", a.head_size);
        w.key_norm = need_vector(file, layer + "attn_k_norm.weight", a.head_size);
    } else {
        need_absent(file, layer + "attn_q_norm.weight", "awq_edge.decoder.qk_norm is false");
        need_absent(file, layer + "attn_k_norm.weight", "awq_edge.decoder.qk_norm is false");
    }
    w.attention_output = need_linear(file, layer + "attn_output", a.hidden_size, a.query_size());
    w.feed_forward_norm = need_vector(file, layer + "ffn_norm.weight", a.hidden_size);
    w.gate = need_linear(file, layer + "ffn_gate", a.feed_forward_size, a.hidden_size);
    w.up = need_linear(file, layer + "ffn_up", a.feed_forward_size, a.hidden_size);
    need_equal_groups(layer, "ffn_gate", w.gate, "ffn_up", w.up);
    w.down = need_linear(file, layer + "ffn_down", a.hidden_size, a.feed_forward_size);
    return w;
}

uint64_t tensor_parameters(const Tensor& tensor) {
    return tensor.packed ? tensor.matrix.rows * tensor.matrix.columns : tensor.elements;
}

}  // namespace

Model::Model(const char* path) : Model(std::make_unique<MappedFile>(path), nullptr, 0) {}

Model::Model(const uint8_t* bytes, size_t size) : Model(nullptr, bytes, size) {}

Model::Model(std::unique_ptr<MappedFile> mapping, const uint8_t* bytes, size_t size)
    : mapping_(std::move(mapping)),
      file_(mapping_ ? mapping_->data() : bytes, mapping_ ? mapping_->size() : size),
      architecture_(read_architecture(file_)) {
    const Architecture& a = architecture_;
    embedding_ = need_matrix(file_, "token_embd.weight", a.vocabulary_size, a.hidden_size);
    if (a.tied_head) {
        need_absent(file_, "output.weight", "awq_edge.decoder.tied_head is true");
        head_ = {embedding_, nullptr};
    } else {
        head_ = {need_matrix(file_, "output.weight", a.vocabulary_size, a.hidden_size), nullptr};
    }
    output_norm_ = need_vector(file_, "output_norm.weight", a.hidden_size);
    inverse_frequencies_ = need_frequencies(file_, a);
    for (uint32_t i = 0; i < a.layers; ++i) layers_.push_back(read_layer(file_, a, i));
}

uint64_t Model::parameters() const {
    uint64_t total = 0;
    for (const Tensor& tensor : file_.tensors()) total += tensor_parameters(tensor);
    return total;
}

uint64_t Model::decode_bytes() const {
    uint64_t total = embedding_.block_bytes / kBlockRows;
    for (const Tensor& tensor : file_.tensors()) {
        const bool looked_up_only =
            tensor.packed && !architecture_.tied_head && tensor.matrix.blocks == embedding_.blocks;
        if (!looked_up_only) total += tensor.bytes;
    }
    return total;
}

void Model::expect_use() const {
    if (mapping_) mapping_->expect_use();
}

}  // namespace awqe
