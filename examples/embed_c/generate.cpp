// Generates text with a model file, in C++17, without Python:
//
//     generate MODEL COUNT [ID ...]
//
// The same as generate.c, with objects that close themselves and a status that throws.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "vocabulary.h"

namespace {

// Calls a function of the library; its last parameter is the error.
template <class Function, class... Arguments>
void call(Function function, Arguments... arguments) {
    awqe_error error = {};
    if (function(arguments..., &error) != AWQE_OK) throw std::runtime_error(error.message);
}

template <class T, void (*close)(T*)>
struct Close {
    void operator()(T* object) const { close(object); }
};
using Model = std::unique_ptr<awqe_model, Close<awqe_model, awqe_model_close>>;
using Session = std::unique_ptr<awqe_session, Close<awqe_session, awqe_session_close>>;
using Sampler = std::unique_ptr<awqe_sampler, Close<awqe_sampler, awqe_sampler_close>>;
using Vocabulary = std::unique_ptr<vocabulary, Close<vocabulary, vocabulary_close>>;

Model open_model(const char* path) {
    awqe_model* model = nullptr;
    call(awqe_model_open, path, &model);
    return Model(model);
}

Session open_session(const Model& model) {
    awqe_session* session = nullptr;
    call(awqe_session_open, model.get(), nullptr, &session);
    return Session(session);
}

Sampler open_greedy_sampler() {
    awqe_sampling sampling = {};
    sampling.struct_size = sizeof(sampling);
    sampling.top_p = 1.0f;
    sampling.repetition_penalty = 1.0f;
    awqe_sampler* sampler = nullptr;
    call(awqe_sampler_open, &sampling, &sampler);
    return Sampler(sampler);
}

awqe_metadata find(const Model& model, const std::string& key) {
    for (size_t i = 0; i < awqe_model_metadata_count(model.get()); ++i) {
        awqe_metadata entry = {};
        entry.struct_size = sizeof(entry);
        call(awqe_model_metadata_at, model.get(), i, &entry);
        if (key == entry.key) return entry;
    }
    throw std::runtime_error("the model file has no " + key);
}

void generate(const char* path, long count, std::vector<uint32_t> prompt) {
    const Model model = open_model(path);
    const Session session = open_session(model);
    const Sampler sampler = open_greedy_sampler();
    const awqe_metadata tokenizer = find(model, "tokenizer.huggingface.json");
    const Vocabulary words(vocabulary_open(tokenizer.string_value, tokenizer.count));
    if (words == nullptr) throw std::runtime_error("the model file has no vocabulary");
    const uint64_t end = find(model, "tokenizer.ggml.eos_token_id").unsigned_value;
    if (prompt.empty()) {
        const uint64_t begin = find(model, "tokenizer.ggml.bos_token_id").unsigned_value;
        prompt.push_back(static_cast<uint32_t>(begin));
    }

    for (const uint32_t token : prompt) std::fputs(vocabulary_text(words.get(), token), stdout);
    for (; count > 0; --count) {
        call(awqe_session_evaluate, session.get(), prompt.data(), prompt.size(), AWQE_LOGITS_LAST,
             nullptr, nullptr, nullptr);
        uint32_t token = 0;
        call(awqe_session_sample, session.get(), sampler.get(), &token);
        if (token == end) break;
        std::fputs(vocabulary_text(words.get(), token), stdout);
        std::fflush(stdout);
        prompt = {token};
    }
    std::putchar('\n');
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s MODEL COUNT [ID ...]\n", argv[0]);
        return 2;
    }
    std::vector<uint32_t> prompt;
    for (int i = 3; i < argc; ++i) {
        prompt.push_back(static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)));
    }
    try {
        generate(argv[1], std::strtol(argv[2], nullptr, 10), prompt);
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "%s\n", problem.what());
        return 1;
    }
    return 0;
}
