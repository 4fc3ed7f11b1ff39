// Differential fuzz target: any bytes as a model file that is opened, evaluated and sampled through
// the C API, with every kernel table that this CPU can run, both caches, as a block and token by
// token; a file with a vision part encodes a picture too, and reads a text in which it is seen. All
// must be those of the reference, NaN for NaN, and the sampler must refuse exactly those that are
// not finite; anything else aborts and says what. Built twice:
//   build/fuzz/tests/native/fuzz_evaluate build/fuzz/evaluate tests/data/fuzz/evaluate   libFuzzer
//   fuzz_evaluate_files DIRECTORY CASES [SEED]                  plain, on every machine, by ctest
//
// Mutations know where the numbers of a file are: bytes alone would rarely get past the reader.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "tests/native/support/random.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace awqe::test {
namespace {

constexpr uint64_t kMostBytes = 64u << 20;  // of a session; a larger one shows nothing more
constexpr size_t kTokens = 8;
constexpr uint32_t kMostPixels = 128;  // on a side of a picture
constexpr size_t kAround = 2;          // tokens before a picture, and behind it

struct Close {
    void operator()(awqe_model* model) const { awqe_model_close(model); }
    void operator()(awqe_session* session) const { awqe_session_close(session); }
    void operator()(awqe_sampler* sampler) const { awqe_sampler_close(sampler); }
};
template <class T>
using Owned = std::unique_ptr<T, Close>;

template <class T>
T sized() {
    T structure = {};
    structure.struct_size = sizeof(T);
    return structure;
}

[[noreturn]] void give_up(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::abort();
}

// A model can only be opened by a name: the input's bytes as a file without a place on any disk.
Owned<awqe_model> open(const uint8_t* data, size_t size) {
    const int file = memfd_create("damaged.awq.gguf", MFD_CLOEXEC);
    if (file < 0 || write(file, data, size) != static_cast<ssize_t>(size)) {
        give_up("no file in memory");
    }
    awqe_model* model = nullptr;
    awqe_error error;
    awqe_model_open(("/proc/self/fd/" + std::to_string(file)).c_str(), &model, &error);
    close(file);
    if (model == nullptr && error.message[0] == 0) give_up("refused without a sentence");
    return Owned<awqe_model>(model);
}

// Every entry and tensor can be read to its last byte.
void read_descriptions(const awqe_model* model) {
    const auto read = [](const void* bytes, uint64_t count) {
        uint8_t sum = 0;
        for (uint64_t i = 0; i < count; ++i) sum ^= static_cast<const uint8_t*>(bytes)[i];
        asm volatile("" : : "r"(sum));  // somebody has read it
    };
    for (size_t i = 0; i < awqe_model_metadata_count(model); ++i) {
        auto entry = sized<awqe_metadata>();
        if (awqe_model_metadata_at(model, i, &entry, nullptr) != AWQE_OK) give_up("no entry");
        read(entry.key, std::strlen(entry.key));
        if (entry.string_value != nullptr) read(entry.string_value, entry.count);
        if (entry.array_value != nullptr) read(entry.array_value, entry.array_bytes);
    }
    for (size_t i = 0; i < awqe_model_tensor_count(model); ++i) {
        auto tensor = sized<awqe_tensor>();
        if (awqe_model_tensor_at(model, i, &tensor, nullptr) != AWQE_OK) give_up("no tensor");
        read(tensor.name, std::strlen(tensor.name));
    }
}

// One table and cache; a session of it computes the logits of the same few tokens in several ways.
struct Way {
    const char* kernels;
    awqe_kv_type kv_type;

    std::string describe(size_t chunk) const {
        return std::string(kernels) + (kv_type == AWQE_KV_F16 ? ", fp16" : ", int8") + ", " +
               std::to_string(chunk) + " tokens at a time";
    }
};

struct Evaluation {
    Owned<awqe_session> session;
    size_t tokens = 0;
    size_t vocabulary = 0;
};

// A session of as many tokens as the model's context has, at most `most`; none if it would be too
// large.
Evaluation open_session(const awqe_model* model, const Way& way, size_t most) {
    auto info = sized<awqe_model_info>();
    awqe_model_info_get(model, &info, nullptr);
    auto options = sized<awqe_session_options>();
    options.threads = options.prefill_threads = 1;
    options.kv_type = way.kv_type;
    options.context_length = static_cast<uint32_t>(std::min<size_t>(info.context_length, most));
    auto memory = sized<awqe_memory>();
    if (awqe_session_memory(model, &options, &memory, nullptr) != AWQE_OK ||
        memory.cache_bytes + memory.scratch_bytes > kMostBytes) {
        return {};
    }
    setenv("AWQ_EDGE_KERNELS", way.kernels, 1);
    awqe_session* opened = nullptr;
    awqe_error error;
    if (awqe_session_open(model, &options, &opened, &error) != AWQE_OK) {
        give_up(way.describe(most) + ": " + error.message);
    }
    return {Owned<awqe_session>(opened), options.context_length, info.vocabulary_size};
}

// float [evaluation.tokens, evaluation.vocabulary], whatever the session has computed before.
//
// chunk: tokens per call.
std::vector<float> logits_of(const Evaluation& evaluation, const Way& way, size_t chunk) {
    awqe_session* const session = evaluation.session.get();
    const size_t vocabulary = evaluation.vocabulary;
    const size_t count = evaluation.tokens;
    awqe_error error;
    if (awqe_session_truncate(session, 0, &error) != AWQE_OK) {
        give_up(way.describe(chunk) + ": " + error.message);
    }
    std::vector<float> logits(count * vocabulary);
    for (size_t done = 0; done < count; done += chunk) {
        uint32_t tokens[kTokens];
        const size_t some = std::min(chunk, count - done);
        for (size_t i = 0; i < some; ++i) {
            tokens[i] = static_cast<uint32_t>((done + i) * 7 % vocabulary);
        }
        if (awqe_session_evaluate(session, tokens, some, AWQE_LOGITS_ALL,
                                  logits.data() + done * vocabulary, nullptr, nullptr,
                                  &error) != AWQE_OK) {
            give_up(way.describe(chunk) + ": " + error.message);
        }
    }
    // The sampler takes what is finite, and nothing else.
    auto sampling = sized<awqe_sampling>();
    sampling.temperature = 0.8f;
    sampling.top_k = 5;
    sampling.top_p = 0.9f;
    sampling.min_p = 0.01f;
    sampling.repetition_penalty = 1.1f;
    awqe_sampler* made = nullptr;
    if (awqe_sampler_open(&sampling, &made, &error) != AWQE_OK) give_up(error.message);
    const Owned<awqe_sampler> sampler(made);
    uint32_t token = 0;
    const bool drawn = awqe_session_sample(session, sampler.get(), &token, &error) == AWQE_OK;
    const bool finite = std::all_of(logits.end() - static_cast<ptrdiff_t>(vocabulary), logits.end(),
                                    [](float x) { return std::isfinite(x); });
    if (drawn != finite || (drawn && token >= vocabulary)) {
        give_up(way.describe(chunk) + (drawn ? ": a token from logits that are not finite"
                                             : ": no token from finite logits"));
    }
    return logits;
}

// what: for example "logit".
void compare(const std::vector<float>& numbers, const std::vector<float>& expected,
             const std::string& way, const std::string& what) {
    if (numbers.size() != expected.size()) give_up(way + ": another number of results");
    for (size_t i = 0; i < numbers.size(); ++i) {
        if (std::isnan(numbers[i]) && std::isnan(expected[i])) continue;
        if (std::memcmp(&numbers[i], &expected[i], sizeof(float)) == 0) continue;
        give_up(way + ": " + what + " " + std::to_string(i) + " is " + std::to_string(numbers[i]) +
                ", the reference gives " + std::to_string(expected[i]));
    }
}

// The tables that this CPU can run, the reference first.
std::vector<const char*> tables() {
    std::vector<const char*> names;
    for (size_t i = 0; awqe_kernels(i) != nullptr; ++i) names.push_back(awqe_kernels(i));
    std::reverse(names.begin(), names.end());
    return names;
}

// Every table multiplies and attends in two sizes of blocks and token by token, with both caches;
// the reference, which is most of the time, once with each.
void evaluate(const awqe_model* model) {
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        const size_t block = kv_type == AWQE_KV_F16 ? kTokens : 5;
        std::vector<float> expected;
        for (const char* kernels : tables()) {
            const Way way = {kernels, kv_type};
            const Evaluation evaluation = open_session(model, way, kTokens);
            if (evaluation.session == nullptr) return;
            if (expected.empty()) {
                expected = logits_of(evaluation, way, block);
                continue;
            }
            for (const size_t chunk : {block, size_t{1}}) {
                compare(logits_of(evaluation, way, chunk), expected, way.describe(chunk), "logit");
            }
        }
    }
}

// A picture as every table has encoded it.
struct Picture {
    std::vector<float> rows;  // [tokens, embedding_size]; empty: there is none
    size_t tokens = 0;
    uint32_t columns = 0;    // embeddings of a row; 0 where a picture has one shape
    bool looked_at = false;  // by layers, in place of being read
    bool whole = false;      // read in one call
};

// Nothing without a vision part, or if it is too large.
Picture picture_of(const awqe_model* model, const char* kernels, uint32_t threads) {
    auto info = sized<awqe_vision_info>();
    uint64_t scratch = 0;
    if (awqe_vision_info_get(model, &info, nullptr) != AWQE_OK || info.image_size > kMostPixels ||
        awqe_vision_memory(model, 0, 0, threads, &scratch, nullptr) != AWQE_OK ||
        scratch > kMostBytes) {
        return {};
    }
    std::vector<uint8_t> pixels(size_t{3} * info.image_size * info.image_size);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * i >> 3);
    Picture picture;
    picture.columns = info.step == 0 ? 0 : info.image_size / info.step;
    picture.tokens =
        info.step == 0 ? size_t{info.tokens} : size_t{picture.columns} * picture.columns;
    picture.looked_at = info.session_bytes != 0;
    picture.whole = info.bidirectional;
    picture.rows.resize(picture.tokens * info.embedding_size);
    setenv("AWQ_EDGE_KERNELS", kernels, 1);
    awqe_error error;
    if (awqe_vision_encode(model, pixels.data(), 1, 0, 0, threads, picture.rows.data(), nullptr,
                           nullptr, &error) != AWQE_OK) {
        give_up(std::string(kernels) + ": " + error.message);
    }
    return picture;
}

Picture encode(const awqe_model* model) {
    Picture expected;
    uint32_t threads = 1;
    for (const char* kernels : tables()) {
        Picture picture = picture_of(model, kernels, threads);
        threads = 3 - threads;
        if (picture.rows.empty()) return {};
        if (expected.rows.empty())
            expected = std::move(picture);  // the reference's
        else
            compare(picture.rows, expected.rows, kernels, "number of the embeddings");
    }
    return expected;
}

// Two tokens, the picture, two tokens: the logits of all that is read, or none where the picture
// holds what no session takes, which `refusal` then says.
std::vector<float> logits_around(const Evaluation& evaluation, const Way& way,
                                 const Picture& picture, size_t count, std::string& refusal) {
    awqe_session* const session = evaluation.session.get();
    std::vector<float> logits((2 * kAround + count) * evaluation.vocabulary);
    float* next = logits.data();
    awqe_error error;
    const auto read = [&](const uint32_t* tokens, size_t rows) {
        auto input = sized<awqe_batch_input>();
        input.which = AWQE_LOGITS_ALL;
        input.session = session;
        input.tokens = tokens;
        input.embeddings = tokens == nullptr ? picture.rows.data() : nullptr;
        input.columns = tokens == nullptr ? picture.columns : 0;
        input.count = rows;
        input.logits = next;
        next += rows * evaluation.vocabulary;
        return awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error);
    };
    for (const bool before : {true, false}) {
        uint32_t tokens[kAround];
        for (size_t i = 0; i < kAround; ++i) {
            tokens[i] = static_cast<uint32_t>((i + (before ? 3 : 5)) % evaluation.vocabulary);
        }
        if (read(tokens, kAround) != AWQE_OK) give_up(way.describe(kAround) + ": " + error.message);
        if (!before) break;
        const awqe_status shown =
            picture.looked_at
                ? awqe_session_look_at(session, picture.rows.data(), picture.tokens, &error)
                : read(nullptr, count);
        if (shown == AWQE_OK) continue;
        if (shown != AWQE_INVALID_ARGUMENT) give_up(way.describe(count) + ": " + error.message);
        refusal = error.message;
        return {};
    }
    return logits;
}

// A text in which the picture is seen; of one that is read row by row a few rows are enough.
void see(const awqe_model* model, const Picture& picture) {
    if (picture.rows.empty()) return;
    size_t count = picture.tokens;
    if (picture.looked_at)
        count = 0;
    else if (!picture.whole)
        count = picture.columns != 0 ? picture.columns : std::min(count, kTokens);
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        std::vector<float> expected;
        std::string expected_refusal;
        const char* first = nullptr;
        for (const char* kernels : tables()) {
            const Way way = {kernels, kv_type};
            const Evaluation evaluation = open_session(model, way, 2 * kAround + count);
            if (evaluation.session == nullptr || evaluation.tokens < 2 * kAround + count) return;
            std::string refusal;
            std::vector<float> logits = logits_around(evaluation, way, picture, count, refusal);
            if (first == nullptr) {
                first = kernels;
                expected.swap(logits);
                expected_refusal.swap(refusal);
                continue;
            }
            if (refusal != expected_refusal) {
                give_up(way.describe(count) + ": '" + refusal + "', and " + first + ": '" +
                        expected_refusal + "'");
            }
            compare(logits, expected, way.describe(count), "logit around a picture");
        }
    }
}

// Writes `value` at a place that is a multiple of its size, behind the first `header` bytes.
template <class T>
void place(uint8_t* data, size_t size, size_t header, T value, Random& random) {
    if (size < header + sizeof(T)) return;
    const size_t at = header + random.bits() % (size - header - sizeof(T) + 1);
    std::memcpy(data + at / sizeof(T) * sizeof(T), &value, sizeof(T));
}

}  // namespace
}  // namespace awqe::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto model = awqe::test::open(data, size);
    if (model == nullptr) return 0;
    awqe::test::read_descriptions(model.get());
    awqe::test::evaluate(model.get());
    awqe::test::see(model.get(), awqe::test::encode(model.get()));
    return 0;
}

// Numbers that break things, as halves or floats, mostly behind the header; a quarter of the time
// libFuzzer's own changes.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
    static const uint16_t halves[] = {0x7e01, 0xfe00, 0x7c00, 0xfc00, 0x7bff,
                                      0xfbff, 0x0001, 0x8000, 0x0000};
    static const float floats[] = {3e38f,   -3e38f, 1e30f, 1e19f,    -1e10f, 1e-42f,
                                   -1e-42f, 0.0f,   -0.0f, INFINITY, NAN,    65520.0f};
    awqe::test::Random random(seed);
    if (random.integer(0, 3) == 0) return LLVMFuzzerMutate(data, size, max_size);
    const size_t header = random.integer(0, 3) == 0 ? 0 : size / 4;
    for (int i = random.integer(1, 8); i > 0; --i) {
        if (random.integer(0, 1) == 0) {
            awqe::test::place(data, size, header, halves[random.bits() % std::size(halves)],
                              random);
        } else {
            awqe::test::place(data, size, header, floats[random.bits() % std::size(floats)],
                              random);
        }
    }
    return size;
}
