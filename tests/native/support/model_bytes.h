// Model files made by hand, byte by byte, so that a test can break exactly one rule. Shares no code
// with the reader but the block sizes of layouts.h. small_model() is the smallest decoder that the
// reader accepts.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "native/format/layouts.h"

namespace awqe::test {

using Bytes = std::vector<uint8_t>;

template <class T>
void append(Bytes& bytes, T value) {
    const size_t end = bytes.size();
    bytes.resize(end + sizeof(T));
    std::memcpy(bytes.data() + end, &value, sizeof(T));
}

inline void append_string(Bytes& bytes, const std::string& text) {
    append<uint64_t>(bytes, text.size());
    bytes.insert(bytes.end(), text.begin(), text.end());
}

template <class T>
Bytes bytes_of(T value) {
    Bytes bytes;
    append(bytes, value);
    return bytes;
}

inline Bytes string_value(const std::string& text) {
    Bytes bytes;
    append_string(bytes, text);
    return bytes;
}

inline Bytes u32_array(const std::vector<uint32_t>& values) {
    Bytes bytes;
    append<uint32_t>(bytes, 4);
    append<uint64_t>(bytes, values.size());
    for (uint32_t value : values) append(bytes, value);
    return bytes;
}

// GGUF's numbers of value types.
enum : uint32_t {
    kU8 = 0,
    kU32 = 4,
    kI32 = 5,
    kF32 = 6,
    kBoolean = 7,
    kText = 8,
    kList = 9,
    kU64 = 10
};

// 64-byte aligned, and exactly as long as the file: the address sanitizer sees every byte read past
// it.
class AlignedBytes {
  public:
    explicit AlignedBytes(const Bytes& bytes) : AlignedBytes(bytes.data(), bytes.size()) {}
    AlignedBytes(const uint8_t* bytes, size_t size) : size_(size) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, size == 0 ? 1 : size) != 0) throw std::bad_alloc();
        data_.reset(static_cast<uint8_t*>(memory));
        if (size > 0) std::memcpy(data_.get(), bytes, size);
    }
    uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    std::unique_ptr<uint8_t, Free> data_;
    size_t size_;
};

struct KeySpec {
    std::string key;
    uint32_t type;
    Bytes value;
};

struct TensorSpec {
    std::string name;
    uint32_t type;  // 0: F32, 24: I8
    std::vector<uint64_t> dimensions;
    Bytes data;
    int64_t offset = -1;  // -1: behind the tensor before
};

struct FileSpec {
    std::string magic = "GGUF";
    uint32_t version = 3;
    int64_t announced_keys = -1;     // -1: as many as there are
    int64_t announced_tensors = -1;  // the same
    std::vector<KeySpec> keys;
    std::vector<TensorSpec> tensors;
    size_t tail = 64;  // zero bytes behind the last tensor and its padding

    KeySpec& key(const std::string& name) {
        for (KeySpec& k : keys) {
            if (k.key == name) return k;
        }
        keys.push_back({name, 0, {}});
        return keys.back();
    }
    void set(const std::string& name, uint32_t type, Bytes value) {
        KeySpec& k = key(name);
        k.type = type;
        k.value = std::move(value);
    }
    void set_u32(const std::string& name, uint32_t value) { set(name, kU32, bytes_of(value)); }
    void set_text(const std::string& name, const std::string& text) {
        set(name, kText, string_value(text));
    }
    void erase_key(const std::string& name) {
        std::erase_if(keys, [&](const KeySpec& k) { return k.key == name; });
    }

    TensorSpec& tensor(const std::string& name) {
        for (TensorSpec& t : tensors) {
            if (t.name == name) return t;
        }
        tensors.push_back({name, 0, {}, {}, -1});
        return tensors.back();
    }
    void set_floats(const std::string& name, const std::vector<float>& values) {
        TensorSpec& t = tensor(name);
        t.type = 0;
        t.dimensions = {values.size()};
        t.data.clear();
        for (float value : values) append(t.data, value);
    }
    void set_matrix(const std::string& name, uint64_t rows, uint64_t columns, uint32_t bits = 4,
                    uint32_t group_size = 32) {
        TensorSpec& t = tensor(name);
        const PackedMatrix layout = packed_matrix_layout(rows, columns, bits, group_size);
        t.type = 24;
        t.data.clear();
        for (char c : {'A', 'W', 'Q', 'E'}) t.data.push_back(static_cast<uint8_t>(c));
        append<uint32_t>(t.data, 1);
        append<uint64_t>(t.data, rows);
        append<uint64_t>(t.data, columns);
        append<uint32_t>(t.data, bits);
        append<uint32_t>(t.data, group_size);
        t.data.resize(packed_matrix_bytes(layout));
        t.dimensions = {t.data.size()};
    }
    void erase_tensor(const std::string& name) {
        std::erase_if(tensors, [&](const TensorSpec& t) { return t.name == name; });
    }

    Bytes build() const {
        Bytes out(magic.begin(), magic.end());
        append(out, version);
        append<uint64_t>(
            out, announced_tensors < 0 ? tensors.size() : static_cast<uint64_t>(announced_tensors));
        append<uint64_t>(out,
                         announced_keys < 0 ? keys.size() : static_cast<uint64_t>(announced_keys));
        for (const KeySpec& k : keys) {
            append_string(out, k.key);
            append(out, k.type);
            out.insert(out.end(), k.value.begin(), k.value.end());
        }
        uint64_t next = 0;
        std::vector<uint64_t> offsets;
        for (const TensorSpec& t : tensors) {
            const uint64_t offset = t.offset < 0 ? next : static_cast<uint64_t>(t.offset);
            offsets.push_back(offset);
            append_string(out, t.name);
            append<uint32_t>(out, static_cast<uint32_t>(t.dimensions.size()));
            for (uint64_t size : t.dimensions) append(out, size);
            append(out, t.type);
            append(out, offset);
            next = round_up(next + t.data.size(), 64);
        }
        out.resize(round_up(out.size(), 64));
        const size_t data_begin = out.size();
        out.resize(data_begin + next + tail);
        for (size_t i = 0; i < tensors.size(); ++i) {
            const Bytes& data = tensors[i].data;
            if (offsets[i] > next || data.size() > out.size() - data_begin - offsets[i]) continue;
            std::copy(data.begin(), data.end(),
                      out.begin() + static_cast<int64_t>(data_begin + offsets[i]));
        }
        return out;
    }
};

// One layer, hidden 8, two query heads of 4 over one key-value head, feed-forward 12, vocabulary 5,
// context 16, tied head.
inline FileSpec small_model() {
    FileSpec file;
    file.set_text("general.architecture", "awq-edge");
    file.set_u32("general.alignment", 64);
    file.set_u32("awq_edge.format_version", 1);
    file.set_text("awq_edge.layout", "r4k32");
    file.set_text("awq_edge.sha256", std::string(64, '0'));
    const std::string decoder = "awq_edge.decoder.";
    file.set_u32(decoder + "layers", 1);
    file.set_u32(decoder + "hidden_size", 8);
    file.set_u32(decoder + "vocabulary_size", 5);
    file.set_u32(decoder + "context_length", 16);
    file.set_u32(decoder + "heads", 2);
    file.set_u32(decoder + "kv_heads", 1);
    file.set_u32(decoder + "head_size", 4);
    file.set_u32(decoder + "feed_forward_size", 12);
    file.set(decoder + "norm_epsilon", kF32, bytes_of(1e-5f));
    file.set_text(decoder + "activation", "silu");
    file.set(decoder + "sliding_windows", kList, u32_array({0}));
    file.set(decoder + "qk_norm", kBoolean, {0});
    file.set(decoder + "tied_head", kBoolean, {1});
    file.set(decoder + "rope_theta", kF32, bytes_of(10000.0f));
    file.set_text(decoder + "rope_scaling", "none");
    const std::string quantization = "awq_edge.quantization.";
    file.set_text(quantization + "method", "rtn");
    file.set_u32(quantization + "bits", 4);
    file.set_u32(quantization + "group_size", 32);
    file.set_u32(quantization + "head_bits", 8);
    file.set_u32(quantization + "embedding_bits", 8);
    file.set_text(quantization + "tool_version", "0");

    file.set_matrix("token_embd.weight", 5, 8, 8);
    file.set_floats("output_norm.weight", std::vector<float>(8, 1.0f));
    file.set_floats("rope.inverse_frequencies", {1.0f, 0.01f});
    file.set_floats("blk.0.attn_norm.weight", std::vector<float>(8, 1.0f));
    file.set_matrix("blk.0.attn_q.weight", 8, 8);
    file.set_matrix("blk.0.attn_k.weight", 4, 8, 2);
    file.set_matrix("blk.0.attn_v.weight", 4, 8, 3);
    file.set_floats("blk.0.attn_v.bias", {1, 2, 3, 4});
    file.set_matrix("blk.0.attn_output.weight", 8, 8);
    file.set_floats("blk.0.ffn_norm.weight", std::vector<float>(8, 1.0f));
    file.set_matrix("blk.0.ffn_gate.weight", 12, 8);
    file.set_matrix("blk.0.ffn_up.weight", 12, 8);
    file.set_matrix("blk.0.ffn_down.weight", 8, 12);
    return file;
}

}  // namespace awqe::test
