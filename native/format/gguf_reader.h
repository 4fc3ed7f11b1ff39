// Reads the bytes of a model file as a GGUF 3 container with our packed matrices in it, and checks
// the rules 1–6, 8–10 and 12 of FORMAT.md section 4. Afterwards every view below can be trusted.
// Rules 7 and 11, about the decoder's own keys and tensors, are native/runtime/model.cpp's. Copies
// names, never values or weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "native/format/layouts.h"

namespace awqe {

// As numbered in GGUF 3.
enum class ValueType : uint32_t {
    kUint8 = 0,
    kInt8 = 1,
    kUint16 = 2,
    kInt16 = 3,
    kUint32 = 4,
    kInt32 = 5,
    kFloat32 = 6,
    kBool = 7,
    kString = 8,
    kArray = 9,
    kUint64 = 10,
    kInt64 = 11,
    kFloat64 = 12,
};

const char* value_type_name(ValueType type);

// The value of a metadata entry, or one element of an array of numbers.
struct Value {
    ValueType type;
    ValueType element_type;  // of an array, otherwise `type`
    uint64_t count;          // elements of an array, bytes of a string, otherwise 1
    uint64_t bytes;          // of `data`
    const uint8_t* data;     // in the file, not aligned; of a string or an array: after its length.
                             // The strings of an array each have their length (u64) in front

    uint64_t as_unsigned() const;  // kUint8 … kUint64, kBool
    int64_t as_signed() const;     // kInt8 … kInt64
    double as_real() const;        // kFloat32, kFloat64
    std::string_view as_string() const;

    uint64_t element_bytes() const;       // of an array of numbers or booleans; 0 for strings
    Value element(uint64_t index) const;  // of an array of numbers or booleans; index < count
};

struct Entry {
    std::string key;
    Value value;
};

struct Tensor {
    std::string name;
    bool packed;          // otherwise float32
    PackedMatrix matrix;  // if packed
    const float* floats;  // [elements], if not packed
    uint64_t elements;    // as GGUF counts them: bytes of a packed matrix
    uint64_t offset;      // from the beginning of the file
    uint64_t bytes;
};

class GgufFile {
  public:
    // bytes [size], 64-byte aligned, must outlive this object. Throws Failure naming the broken
    // rule.
    GgufFile(const uint8_t* bytes, size_t size);

    const std::vector<Entry>& entries() const { return entries_; }
    const std::vector<Tensor>& tensors() const { return tensors_; }
    const Entry* find_entry(std::string_view key) const;     // NULL if there is none
    const Tensor* find_tensor(std::string_view name) const;  // NULL if there is none
    size_t size() const { return size_; }

  private:
    size_t size_;
    std::vector<Entry> entries_;             // in file order
    std::vector<Tensor> tensors_;            // in file order
    std::vector<uint32_t> entries_by_key_;   // indices, sorted
    std::vector<uint32_t> tensors_by_name_;  // indices, sorted
};

}  // namespace awqe
