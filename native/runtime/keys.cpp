// Reading single keys; see keys.h.
#include "native/runtime/keys.h"

#include <cinttypes>
#include <cmath>

namespace awqe {

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

bool flag_or(const GgufFile& file, const char* key, bool absent) {
    if (file.find_entry(key) == nullptr) return absent;
    return need_entry(file, key, ValueType::kBool).value.as_unsigned() != 0;
}

uint32_t size_or(const GgufFile& file, const char* key, uint32_t most, uint32_t absent) {
    return file.find_entry(key) == nullptr ? absent : need_size(file, key, most);
}

float limit_or_none(const GgufFile& file, const char* key) {
    if (file.find_entry(key) == nullptr) return 0.0f;
    const double value = need_entry(file, key, ValueType::kFloat32).value.as_real();
    if (!std::isfinite(value) || value < 0) {
        fail(AWQE_FILE_INVALID, "key %s is %g, it must be positive and finite, or 0 for none", key,
             value);
    }
    return static_cast<float>(value);
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

std::vector<uint32_t> need_per_layer(const GgufFile& file, const char* key, uint32_t layers) {
    const Entry& entry = need_u32_array(file, key);
    if (entry.value.count != layers) {
        fail(AWQE_FILE_INVALID, "key %s has %" PRIu64 " elements for %u layers", key,
             entry.value.count, layers);
    }
    std::vector<uint32_t> values(layers);
    for (uint32_t i = 0; i < layers; ++i) {
        values[i] = static_cast<uint32_t>(entry.value.element(i).as_unsigned());
    }
    return values;
}

}  // namespace awqe
