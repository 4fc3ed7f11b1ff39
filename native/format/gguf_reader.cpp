// Parses and checks a model file; the rules and their reasons are section 4 of FORMAT.md, whose
// numbers stand beside the checks.
#include "native/format/gguf_reader.h"

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstring>
#include <type_traits>

#include "native/failure/failure.h"

namespace awqe {
namespace {

static_assert(std::endian::native == std::endian::little, "model files are little-endian");

constexpr uint32_t kVersion = 3;
constexpr uint64_t kMaxEntries = 65536;           // a thousand times what models have
constexpr uint64_t kMaxTensors = 65536;           // the same
constexpr uint64_t kMaxNameBytes = 256;           // GGUF's own limit for tensor names is 64
constexpr uint64_t kMaxStringBytes = 64u << 20;   // the largest tokenizer.json in use has 33 MB
constexpr uint64_t kMaxArrayElements = 1u << 24;  // 60 times the largest vocabulary in use
constexpr uint64_t kAlignment = 64;               // a cache line and a 512-bit register
constexpr uint64_t kTail = 64;           // bytes that a full-vector load may read past the end
constexpr uint32_t kMaxRows = 1u << 24;  // with kMaxColumns: no size of a matrix leaves 64 bits

constexpr uint32_t kTypeF32 = 0;
constexpr uint32_t kTypeI8 = 24;

template <class T>
T read_as(const uint8_t* bytes) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

// Bytes of one value; 0 for strings and arrays, whose size is in the file.
uint64_t value_bytes(ValueType type) {
    switch (type) {
        case ValueType::kUint8:
        case ValueType::kInt8:
        case ValueType::kBool:
            return 1;
        case ValueType::kUint16:
        case ValueType::kInt16:
            return 2;
        case ValueType::kUint32:
        case ValueType::kInt32:
        case ValueType::kFloat32:
            return 4;
        case ValueType::kUint64:
        case ValueType::kInt64:
        case ValueType::kFloat64:
            return 8;
        case ValueType::kString:
        case ValueType::kArray:
            return 0;
    }
    return 0;
}

// GGUF's name of a tensor type; NULL for a number that it does not assign.
const char* tensor_type_name(uint32_t type) {
    static constexpr const char* kNames[] = {
        "F32",     "F16",    "Q4_0",    "Q4_1",  nullptr,  nullptr, "Q5_0",  "Q5_1",
        "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
        "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
        "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16",  nullptr,
        nullptr,   nullptr,  "TQ1_0",   "TQ2_0", nullptr,  nullptr, nullptr, "MXFP4",
    };
    return type < std::size(kNames) ? kNames[type] : nullptr;
}

// Where we are in the header, and what to call it in a message. Every read is checked against the
// end of the file.
class Cursor {
  public:
    Cursor(const uint8_t* begin, size_t size) : begin_(begin), at_(begin), end_(begin + size) {}

    void name(const char* kind, std::string_view what) {
        kind_ = kind;
        what_ = what;
    }
    void name(const char* kind) { name(kind, {}); }

    size_t offset() const { return static_cast<size_t>(at_ - begin_); }

    // Rule 4. Returns the beginning of the next `count` bytes and steps over them.
    const uint8_t* take(uint64_t count) {
        if (count > static_cast<uint64_t>(end_ - at_)) {
            fail(AWQE_FILE_INVALID, "the file ends inside %s%.64s: it is cut off or damaged", kind_,
                 std::string(what_).c_str());
        }
        const uint8_t* bytes = at_;
        at_ += count;
        return bytes;
    }

    template <class T>
    T read() {
        return read_as<T>(take(sizeof(T)));
    }

    // Rule 2, of a key or a tensor's name.
    std::string read_name() {
        const uint64_t length = read<uint64_t>();
        if (length == 0 || length > kMaxNameBytes) {
            fail(AWQE_FILE_INVALID, "%s%.64s has %" PRIu64 " bytes, allowed are 1 to %" PRIu64,
                 kind_, std::string(what_).c_str(), length, kMaxNameBytes);
        }
        const uint8_t* bytes = take(length);
        for (uint64_t i = 0; i < length; ++i) {
            if (bytes[i] < 0x21 || bytes[i] > 0x7E) {
                fail(AWQE_FILE_INVALID,
                     "%s%.64s holds the byte 0x%02x; only printable ASCII is allowed", kind_,
                     std::string(what_).c_str(), bytes[i]);
            }
        }
        return std::string(reinterpret_cast<const char*>(bytes), length);
    }

  private:
    const uint8_t* begin_;
    const uint8_t* at_;
    const uint8_t* end_;
    const char* kind_ = "the header";
    std::string_view what_;
};

// Rule 3.
ValueType read_value_type(Cursor& cursor, const std::string& key) {
    const uint32_t number = cursor.read<uint32_t>();
    if (number > static_cast<uint32_t>(ValueType::kFloat64)) {
        fail(AWQE_FILE_INVALID, "key %.64s has value type %u, which GGUF 3 does not know",
             key.c_str(), number);
    }
    return static_cast<ValueType>(number);
}

// Rule 2, of a string value. Returns its length; the cursor then stands at its first byte.
uint64_t read_string_length(Cursor& cursor, const std::string& key) {
    const uint64_t length = cursor.read<uint64_t>();
    if (length > kMaxStringBytes) {
        fail(AWQE_FILE_INVALID,
             "key %.64s holds a string of %" PRIu64 " bytes, at most 64 MiB are allowed",
             key.c_str(), length);
    }
    return length;
}

// Rule 3, of `count` booleans.
void check_booleans(const uint8_t* bytes, uint64_t count, const std::string& key) {
    for (uint64_t i = 0; i < count; ++i) {
        if (bytes[i] > 1) {
            fail(AWQE_FILE_INVALID, "key %.64s holds the boolean %u, allowed are 0 and 1",
                 key.c_str(), bytes[i]);
        }
    }
}

void read_array(Cursor& cursor, Entry& entry) {
    Value& value = entry.value;
    value.element_type = read_value_type(cursor, entry.key);
    if (value.element_type == ValueType::kArray) {
        fail(AWQE_FILE_INVALID, "key %.64s holds an array of arrays, which is not allowed",
             entry.key.c_str());
    }
    value.count = cursor.read<uint64_t>();
    if (value.count > kMaxArrayElements) {
        fail(AWQE_FILE_INVALID,
             "key %.64s holds an array of %" PRIu64 " elements, at most %" PRIu64 " are allowed",
             entry.key.c_str(), value.count, kMaxArrayElements);
    }
    if (value.element_type != ValueType::kString) {
        // At most 2^24 elements of 8 bytes: the product cannot overflow.
        value.bytes = value.count * value_bytes(value.element_type);
        value.data = cursor.take(value.bytes);
        if (value.element_type == ValueType::kBool) {
            check_booleans(value.data, value.count, entry.key);
        }
        return;
    }
    value.data = cursor.take(0);
    for (uint64_t i = 0; i < value.count; ++i) cursor.take(read_string_length(cursor, entry.key));
    value.bytes = static_cast<uint64_t>(cursor.take(0) - value.data);
}

Entry read_entry(Cursor& cursor) {
    Entry entry = {};
    cursor.name("the name of a metadata key");
    entry.key = cursor.read_name();
    cursor.name("the value of key ", entry.key);
    Value& value = entry.value;
    value.type = value.element_type = read_value_type(cursor, entry.key);
    value.count = 1;
    if (value.type == ValueType::kArray) {
        read_array(cursor, entry);
    } else if (value.type == ValueType::kString) {
        value.count = value.bytes = read_string_length(cursor, entry.key);
        value.data = cursor.take(value.count);
    } else {
        value.bytes = value_bytes(value.type);
        value.data = cursor.take(value.bytes);
        if (value.type == ValueType::kBool) check_booleans(value.data, 1, entry.key);
    }
    return entry;
}

// Rules 8 and 9, as far as one tensor's description tells. `offset` is still relative to the
// beginning of the data.
Tensor read_tensor(Cursor& cursor) {
    Tensor tensor = {};
    cursor.name("the name of a tensor");
    tensor.name = cursor.read_name();
    const char* name = tensor.name.c_str();
    cursor.name("the description of tensor ", tensor.name);
    const uint32_t dimensions = cursor.read<uint32_t>();
    const uint8_t* sizes = cursor.take(uint64_t{dimensions} * sizeof(uint64_t));
    const uint32_t type = cursor.read<uint32_t>();
    if (type != kTypeF32 && type != kTypeI8) {
        if (tensor_type_name(type) == nullptr) {
            fail(AWQE_FILE_INVALID, "tensor %.64s has type number %u, which GGUF does not assign",
                 name, type);
        }
        fail(AWQE_FILE_INVALID,
             "tensor %.64s has type %s; a model for this runtime holds F32 and packed I8 tensors "
             "only",
             name, tensor_type_name(type));
    }
    if (dimensions != 1) {
        fail(AWQE_FILE_INVALID, "tensor %.64s has %u dimensions, F32 and I8 tensors have one here",
             name, dimensions);
    }
    tensor.elements = read_as<uint64_t>(sizes);
    if (tensor.elements == 0) fail(AWQE_FILE_INVALID, "tensor %.64s has no elements", name);
    tensor.packed = type == kTypeI8;
    const uint64_t element_bytes = tensor.packed ? 1 : sizeof(float);
    if (__builtin_mul_overflow(tensor.elements, element_bytes, &tensor.bytes)) {
        fail(AWQE_FILE_INVALID, "tensor %.64s has more bytes than 64 bits can count", name);
    }
    tensor.offset = cursor.read<uint64_t>();
    if (tensor.offset % kAlignment != 0) {
        fail(AWQE_FILE_INVALID,
             "tensor %.64s lies at offset %" PRIu64 ", which is not a multiple of 64", name,
             tensor.offset);
    }
    return tensor;
}

// Rule 10. The tensor's bytes are known to lie in the file.
PackedMatrix read_packed_matrix(const Tensor& tensor, const uint8_t* bytes) {
    const char* name = tensor.name.c_str();
    if (tensor.bytes < kMatrixHeader) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has %" PRIu64 " bytes, its header alone needs 64",
             name, tensor.bytes);
    }
    if (std::memcmp(bytes, "AWQE", 4) != 0) {
        fail(AWQE_FILE_INVALID, "matrix %.64s does not begin with the magic AWQE", name);
    }
    const uint32_t layout = read_as<uint32_t>(bytes + 4);
    if (layout != 1) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has layout %u, allowed is 1 (r4k32)", name, layout);
    }
    const uint64_t rows = read_as<uint64_t>(bytes + 8);
    const uint64_t columns = read_as<uint64_t>(bytes + 16);
    const uint32_t bits = read_as<uint32_t>(bytes + 24);
    const uint32_t group_size = read_as<uint32_t>(bytes + 28);
    if (rows == 0 || rows > kMaxRows) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has %" PRIu64 " rows, allowed are 1 to %u", name,
             rows, kMaxRows);
    }
    if (columns == 0 || columns > kMaxColumns) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has %" PRIu64 " columns, allowed are 1 to %u", name,
             columns, kMaxColumns);
    }
    if (bits < 2 || bits == 7 || bits > 8) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has %u bits, allowed are 2, 3, 4, 5, 6 and 8", name,
             bits);
    }
    if (group_size != 32 && group_size != 64 && group_size != 128) {
        fail(AWQE_FILE_INVALID, "matrix %.64s has group size %u, allowed are 32, 64 and 128", name,
             group_size);
    }
    for (size_t i = 32; i < kMatrixHeader; ++i) {
        if (bytes[i] != 0) {
            fail(AWQE_FILE_INVALID,
                 "matrix %.64s has a non-zero byte in its header's reserved part", name);
        }
    }
    PackedMatrix matrix = packed_matrix_layout(rows, columns, bits, group_size);
    if (packed_matrix_bytes(matrix) != tensor.bytes) {
        fail(AWQE_FILE_INVALID,
             "matrix %.64s has %" PRIu64 " bytes, its %" PRIu64 " x %" PRIu64
             " codes need %" PRIu64,
             name, tensor.bytes, rows, columns, packed_matrix_bytes(matrix));
    }
    matrix.blocks = bytes + kMatrixHeader;
    return matrix;
}

// Rule 5: sorts the indices of `items` by name and refuses two equal ones.
template <class Item, class Name>
std::vector<uint32_t> index_by_name(const std::vector<Item>& items, const char* kind,
                                    Name name_of) {
    std::vector<uint32_t> order(items.size());
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return name_of(items[a]) < name_of(items[b]); });
    for (size_t i = 1; i < order.size(); ++i) {
        const std::string& name = name_of(items[order[i]]);
        if (name == name_of(items[order[i - 1]])) {
            fail(AWQE_FILE_INVALID, "%s %.64s occurs twice", kind, name.c_str());
        }
    }
    return order;
}

template <class Item, class Name>
const Item* find_by_name(const std::vector<Item>& items, const std::vector<uint32_t>& order,
                         std::string_view wanted, Name name_of) {
    const auto found = std::lower_bound(
        order.begin(), order.end(), wanted,
        [&](uint32_t i, std::string_view name) { return name_of(items[i]) < name; });
    if (found == order.end() || name_of(items[*found]) != wanted) return nullptr;
    return &items[*found];
}

const std::string& key_of(const Entry& entry) { return entry.key; }
const std::string& name_of(const Tensor& tensor) { return tensor.name; }

// Rule 6. A well-formed file of another kind is AWQE_UNSUPPORTED.
void check_kind(const GgufFile& file) {
    const auto need = [&](const char* key, ValueType type) -> const Value& {
        const Entry* entry = file.find_entry(key);
        if (entry == nullptr) fail(AWQE_FILE_INVALID, "the required key %s is missing", key);
        if (entry->value.type != type) {
            fail(AWQE_FILE_INVALID, "key %s has type %s, it must be %s", key,
                 value_type_name(entry->value.type), value_type_name(type));
        }
        return entry->value;
    };
    const std::string architecture(need("general.architecture", ValueType::kString).as_string());
    if (architecture != "awq-edge") {
        fail(AWQE_UNSUPPORTED,
             "general.architecture is '%.64s', this runtime reads 'awq-edge': convert the original "
             "model with awq-edge convert",
             architecture.c_str());
    }
    const uint64_t format = need("awq_edge.format_version", ValueType::kUint32).as_unsigned();
    if (format != 1) {
        fail(AWQE_UNSUPPORTED,
             "awq_edge.format_version is %" PRIu64
             ", this runtime reads 1: update it or convert again",
             format);
    }
    const std::string layout(need("awq_edge.layout", ValueType::kString).as_string());
    if (layout != "r4k32") {
        fail(AWQE_UNSUPPORTED,
             "awq_edge.layout is '%.64s', this runtime reads 'r4k32': update it or convert again",
             layout.c_str());
    }
    const uint64_t alignment = need("general.alignment", ValueType::kUint32).as_unsigned();
    if (alignment != kAlignment) {
        fail(AWQE_FILE_INVALID, "general.alignment is %" PRIu64 ", it must be 64", alignment);
    }
}

// Rules 9 and 12, of tensors in the order of their offsets, which become absolute.
void place_tensors(std::vector<Tensor>& tensors, uint64_t data_offset, uint64_t file_size) {
    std::sort(tensors.begin(), tensors.end(),
              [](const Tensor& a, const Tensor& b) { return a.offset < b.offset; });
    uint64_t end = data_offset;
    for (size_t i = 0; i < tensors.size(); ++i) {
        Tensor& tensor = tensors[i];
        uint64_t tensor_end;
        if (__builtin_add_overflow(tensor.offset, data_offset, &tensor.offset) ||
            __builtin_add_overflow(tensor.offset, tensor.bytes, &tensor_end) ||
            tensor_end > file_size) {
            fail(AWQE_FILE_INVALID,
                 "tensor %.64s reaches past the end of the file: it is cut off or damaged",
                 tensor.name.c_str());
        }
        if (tensor.offset < end) {
            fail(AWQE_FILE_INVALID, "tensors %.64s and %.64s overlap", tensors[i - 1].name.c_str(),
                 tensor.name.c_str());
        }
        end = tensor_end;
    }
    if (end > file_size || file_size - end < kTail) {
        fail(AWQE_FILE_INVALID, "the file must end with at least 64 bytes after the last tensor");
    }
}

}  // namespace

const char* value_type_name(ValueType type) {
    static constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                             "bool", "string", "array", "u64", "i64", "f64"};
    return kNames[static_cast<uint32_t>(type)];
}

uint64_t Value::as_unsigned() const {
    switch (type) {
        case ValueType::kUint16:
            return read_as<uint16_t>(data);
        case ValueType::kUint32:
            return read_as<uint32_t>(data);
        case ValueType::kUint64:
            return read_as<uint64_t>(data);
        default:
            return *data;  // kUint8 and kBool
    }
}

int64_t Value::as_signed() const {
    switch (type) {
        case ValueType::kInt16:
            return read_as<int16_t>(data);
        case ValueType::kInt32:
            return read_as<int32_t>(data);
        case ValueType::kInt64:
            return read_as<int64_t>(data);
        default:
            return read_as<int8_t>(data);
    }
}

double Value::as_real() const {
    return type == ValueType::kFloat64 ? read_as<double>(data) : double{read_as<float>(data)};
}

std::string_view Value::as_string() const {
    return {reinterpret_cast<const char*>(data), static_cast<size_t>(count)};
}

uint64_t Value::element_bytes() const { return value_bytes(element_type); }

Value Value::element(uint64_t index) const {
    return {element_type, element_type, 1, element_bytes(), data + index * element_bytes()};
}

GgufFile::GgufFile(const uint8_t* bytes, size_t size) : size_(size) {
    // Rule 1.
    constexpr size_t kHeaderBytes = 24;  // magic, version, two counts
    if (size < kHeaderBytes) {
        fail(AWQE_FILE_INVALID, "the file has %zu bytes, a GGUF header alone needs %zu", size,
             kHeaderBytes);
    }
    Cursor cursor(bytes, size);
    if (std::memcmp(cursor.take(4), "GGUF", 4) != 0) {
        fail(AWQE_FILE_INVALID,
             "the file does not begin with the magic GGUF: it is not a model file");
    }
    const uint32_t version = cursor.read<uint32_t>();
    if (version != kVersion) {
        fail(AWQE_FILE_INVALID, "the file has GGUF version %u, it must be 3", version);
    }
    // Rule 2.
    const uint64_t tensor_count = cursor.read<uint64_t>();
    const uint64_t entry_count = cursor.read<uint64_t>();
    if (entry_count > kMaxEntries) {
        fail(AWQE_FILE_INVALID,
             "the file announces %" PRIu64 " metadata entries, at most %" PRIu64 " are allowed",
             entry_count, kMaxEntries);
    }
    if (tensor_count > kMaxTensors) {
        fail(AWQE_FILE_INVALID,
             "the file announces %" PRIu64 " tensors, at most %" PRIu64 " are allowed",
             tensor_count, kMaxTensors);
    }
    for (uint64_t i = 0; i < entry_count; ++i) entries_.push_back(read_entry(cursor));
    entries_by_key_ = index_by_name(entries_, "key", key_of);
    check_kind(*this);  // before the tensors: a llama.cpp file is told what it is, not what its
                        // first tensor is

    for (uint64_t i = 0; i < tensor_count; ++i) tensors_.push_back(read_tensor(cursor));
    place_tensors(tensors_, round_up(cursor.offset(), kAlignment), size);
    tensors_by_name_ = index_by_name(tensors_, "tensor", name_of);
    for (Tensor& tensor : tensors_) {
        if (tensor.packed) {
            tensor.matrix = read_packed_matrix(tensor, bytes + tensor.offset);
        } else {
            tensor.floats = reinterpret_cast<const float*>(bytes + tensor.offset);
        }
    }
}

const Entry* GgufFile::find_entry(std::string_view key) const {
    return find_by_name(entries_, entries_by_key_, key, key_of);
}

const Tensor* GgufFile::find_tensor(std::string_view name) const {
    return find_by_name(tensors_, tensors_by_name_, name, name_of);
}

}  // namespace awqe
