// The keys of a file one by one: type and limits of each (rule 7 of native/format/FORMAT.md section
// 4). Every function throws Failure with a sentence that names the key. Which keys there are is the
// business of architecture.cpp and vision_architecture.cpp.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "native/failure/failure.h"
#include "native/format/gguf_reader.h"

namespace awqe {

// ---- keys that must be there --------------------------------------------------------------------

const Entry& need_entry(const GgufFile& file, const char* key, ValueType type);
const Entry& need_u32_array(const GgufFile& file, const char* key);
uint32_t need_size(const GgufFile& file, const char* key, uint32_t most);  // 1 ... most
float need_positive(const GgufFile& file, const char* key);
bool need_bool(const GgufFile& file, const char* key);
std::vector<uint32_t> need_per_layer(const GgufFile& file, const char* key, uint32_t layers);

// ---- optional keys: absent means the default ----------------------------------------------------

// One that is not used here.
void allow_entry(const GgufFile& file, const char* key, ValueType type);
bool flag_or(const GgufFile& file, const char* key, bool absent);
uint32_t size_or(const GgufFile& file, const char* key, uint32_t most, uint32_t absent);
// A limit of magnitudes; 0 is none.
float limit_or_none(const GgufFile& file, const char* key);

// ---- words --------------------------------------------------------------------------------------

template <class Choice>
struct Word {
    const char* word;
    Choice choice;
};

template <class Choice>
Choice need_word(const GgufFile& file, const char* key, std::initializer_list<Word<Choice>> words) {
    const std::string word(need_entry(file, key, ValueType::kString).value.as_string());
    std::string allowed;
    for (const Word<Choice>& w : words) {
        if (word == w.word) return w.choice;
        allowed += std::string(allowed.empty() ? "" : ", ") + w.word;
    }
    fail(AWQE_FILE_INVALID, "key %s is '%.64s', allowed are %s", key, word.c_str(),
         allowed.c_str());
}

// The first word is the default.
template <class Choice>
Choice word_or_first(const GgufFile& file, const char* key,
                     std::initializer_list<Word<Choice>> words) {
    if (file.find_entry(key) == nullptr) return words.begin()->choice;
    return need_word(file, key, words);
}

}  // namespace awqe
