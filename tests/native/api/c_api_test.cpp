// The C API as a caller sees it, on tests/data/tiny.awq.gguf: what is shown, what is refused, and
// that no exception comes through any function, whichever allocation fails inside.
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/process.h"
#include "tests/native/support/random_vision.h"

namespace {

// The allocation that fails: 0 none, otherwise counted down.
std::atomic<long> failing_allocation{0};

void* allocate(size_t size, size_t alignment) {
    if (failing_allocation > 0 && --failing_allocation == 0) throw std::bad_alloc();
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size == 0 ? 1 : size) != 0) throw std::bad_alloc();
    return memory;
}

}  // namespace

void* operator new(size_t size) { return allocate(size, 2 * sizeof(void*)); }
void* operator new(size_t size, std::align_val_t alignment) {
    return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace awqe::test {
namespace {

constexpr const char* kTiny = AWQE_TEST_DATA "/tiny.awq.gguf";
constexpr uint32_t kVocabulary = 203;
constexpr uint32_t kContext = 320;

template <class Structure>
Structure of_this_version() {
    Structure s = {};
    s.struct_size = sizeof(s);
    return s;
}

awqe_sampling sampling() {
    awqe_sampling s = of_this_version<awqe_sampling>();
    s.temperature = s.top_p = s.repetition_penalty = 1;
    return s;
}

// A model, a session with one thread and a sampler, for the length of a test.
struct Everything {
    awqe_model* model = nullptr;
    awqe_session* session = nullptr;
    awqe_sampler* sampler = nullptr;

    explicit Everything(uint32_t context_length = 0, uint32_t threads = 1) {
        CHECK_EQUAL(awqe_model_open(kTiny, &model, nullptr), AWQE_OK);
        awqe_session_options options = of_this_version<awqe_session_options>();
        options.context_length = context_length;
        options.threads = options.prefill_threads = threads;
        CHECK_EQUAL(awqe_session_open(model, &options, &session, nullptr), AWQE_OK);
        const awqe_sampling s = sampling();
        CHECK_EQUAL(awqe_sampler_open(&s, &sampler, nullptr), AWQE_OK);
    }
    ~Everything() {
        awqe_sampler_close(sampler);
        awqe_session_close(session);
        awqe_model_close(model);
    }
};

std::vector<uint32_t> prompt(size_t count) {
    std::vector<uint32_t> tokens(count);
    for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(i * 31 % kVocabulary);
    return tokens;
}

void check_error(const awqe_error& error, awqe_status status, const std::string& sentence) {
    CHECK_EQUAL(error.status, status);
    if (std::string(error.message).find(sentence) == std::string::npos) {
        fail(__FILE__, __LINE__,
             std::string("'").append(error.message).append("' lacks '" + sentence + "'"));
    }
}

}  // namespace

TEST(version_and_model) {
    CHECK_EQUAL(awqe_abi_version(), uint32_t{AWQE_ABI_VERSION});
    CHECK(std::strlen(awqe_version()) > 0);
    Everything all;
    awqe_model_info info = of_this_version<awqe_model_info>();
    CHECK_EQUAL(awqe_model_info_get(all.model, &info, nullptr), AWQE_OK);
    CHECK_EQUAL(info.layers, 3u);
    CHECK_EQUAL(info.vocabulary_size, kVocabulary);
    CHECK_EQUAL(info.context_length, kContext);
    CHECK_EQUAL(info.feed_forward_size, 150u);
    CHECK(info.decode_bytes < info.file_bytes && info.decode_bytes > info.file_bytes / 2);
    CHECK_EQUAL(awqe_model_metadata_count(nullptr), size_t{0});
    CHECK_EQUAL(awqe_model_tensor_count(nullptr), size_t{0});
}

TEST(metadata) {
    Everything all;
    bool saw_windows = false, saw_name = false, saw_epsilon = false;
    for (size_t i = 0; i < awqe_model_metadata_count(all.model); ++i) {
        awqe_metadata entry = of_this_version<awqe_metadata>();
        CHECK_EQUAL(awqe_model_metadata_at(all.model, i, &entry, nullptr), AWQE_OK);
        const std::string key = entry.key;
        if (key == "general.name") {
            saw_name = true;
            CHECK_EQUAL(entry.type, AWQE_VALUE_STRING);
            CHECK(entry.array_value == nullptr);
            CHECK_EQUAL(std::string(entry.string_value, entry.count),
                        "tiny random model for tests");
        } else if (key == "awq_edge.decoder.norm_epsilon") {
            saw_epsilon = true;
            CHECK_EQUAL(entry.type, AWQE_VALUE_REAL);
            CHECK(std::fabs(entry.real_value - 1e-5) < 1e-9);
        } else if (key == "awq_edge.decoder.sliding_windows") {
            saw_windows = true;
            CHECK_EQUAL(entry.type, AWQE_VALUE_ARRAY);
            CHECK_EQUAL(entry.element_type, AWQE_VALUE_UNSIGNED);
            CHECK_EQUAL(entry.count, uint64_t{3});
            CHECK_EQUAL(entry.element_bytes, 4u);
            CHECK_EQUAL(entry.array_bytes, uint64_t{12});
            uint32_t windows[3];
            std::memcpy(windows, entry.array_value, sizeof(windows));
            CHECK_EQUAL(windows[1], 37u);
        }
    }
    CHECK(saw_windows && saw_name && saw_epsilon);
    awqe_metadata entry = of_this_version<awqe_metadata>();
    awqe_error error;
    awqe_model_metadata_at(all.model, 1000, &entry, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "index is 1000");
}

TEST(tensors) {
    Everything all;
    uint64_t end = 0;
    for (size_t i = 0; i < awqe_model_tensor_count(all.model); ++i) {
        awqe_tensor tensor = of_this_version<awqe_tensor>();
        CHECK_EQUAL(awqe_model_tensor_at(all.model, i, &tensor, nullptr), AWQE_OK);
        CHECK(tensor.offset % 64 == 0 && tensor.offset >= end && tensor.bytes > 0);
        end = tensor.offset + tensor.bytes;
        if (std::string(tensor.name) == "blk.1.ffn_down.weight") {
            CHECK_EQUAL(tensor.bits, 3u);
            CHECK_EQUAL(tensor.group_size, 64u);
            CHECK_EQUAL(tensor.rows, uint64_t{72});
            CHECK_EQUAL(tensor.columns, uint64_t{150});
        } else if (std::string(tensor.name) == "blk.1.ffn_down.bias") {
            CHECK_EQUAL(tensor.bits, 32u);
            CHECK_EQUAL(tensor.rows, uint64_t{1});
            CHECK_EQUAL(tensor.columns, uint64_t{72});
        }
    }
    awqe_tensor tensor = of_this_version<awqe_tensor>();
    CHECK_EQUAL(awqe_model_tensor_at(all.model, 1000, &tensor, nullptr), AWQE_INVALID_ARGUMENT);
}

TEST(files_that_cannot_be_opened) {
    awqe_error error;
    awqe_model* model = reinterpret_cast<awqe_model*>(1);
    awqe_model_open("/nonexistent/model.awq.gguf", &model, &error);
    CHECK(model == nullptr);
    check_error(error, AWQE_FILE_UNREADABLE, "cannot open /nonexistent/model.awq.gguf: ");
    awqe_model_open("/", &model, &error);
    check_error(error, AWQE_FILE_UNREADABLE, "not a regular file");
    awqe_model_open(__FILE__, &model, nullptr);
    CHECK(model == nullptr);
    awqe_model_open(nullptr, &model, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "path is NULL");
    awqe_model_open(kTiny, nullptr, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "model is NULL");
}

TEST(what_is_no_file_is_refused_at_once) {
    const std::string fifo = "/tmp/awq_edge_fifo_" + std::to_string(getpid());
    CHECK_EQUAL(mkfifo(fifo.c_str(), 0600), 0);
    for (const std::string& path : {fifo, std::string("/dev/null"), std::string("/dev/zero"),
                                    std::string("/dev/tty"), std::string("/proc/self")}) {
        awqe_model* model = nullptr;
        awqe_error error;
        CHECK_EQUAL(awqe_model_open(path.c_str(), &model, &error), AWQE_FILE_UNREADABLE);
        CHECK(model == nullptr);
    }
    unlink(fifo.c_str());
}

TEST(a_session_outlives_its_model) {
    Everything all, closed;
    const std::vector<uint32_t> tokens = prompt(140);
    std::vector<float> expected(kVocabulary), actual(kVocabulary);
    const auto read = [&](awqe_session* session, std::vector<float>& logits) {
        return awqe_session_evaluate(session, tokens.data(), tokens.size(), AWQE_LOGITS_LAST,
                                     logits.data(), nullptr, nullptr, nullptr);
    };
    CHECK_EQUAL(read(all.session, expected), AWQE_OK);
    awqe_model_close(closed.model);
    closed.model = nullptr;
    CHECK_EQUAL(read(closed.session, actual), AWQE_OK);
    CHECK(actual == expected);
    uint32_t token = 0;
    CHECK_EQUAL(awqe_session_sample(closed.session, closed.sampler, &token, nullptr), AWQE_OK);
    CHECK_EQUAL(awqe_session_truncate(closed.session, 0, nullptr), AWQE_OK);
    CHECK(std::strlen(awqe_session_kernels(closed.session)) > 0);
}

// Threads of C's own: under std::thread lie C++ frames, which not every C++ library lets be
// unwound.
void run_in_thread(void* (*body)(void*), void* argument) {
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, nullptr, body, argument), 0);
    CHECK_EQUAL(pthread_join(thread, nullptr), 0);
}

bool end_thread(void*, size_t, size_t) { pthread_exit(nullptr); }
bool end_thread_of_selftest(void*, const awqe_selftest_result*) { pthread_exit(nullptr); }

TEST(a_callback_may_end_its_thread) {
    Everything all;
    static const std::vector<uint32_t> tokens = prompt(300);
    run_in_thread(
        [](void* session) -> void* {
            awqe_session_evaluate(static_cast<awqe_session*>(session), tokens.data(), 300,
                                  AWQE_LOGITS_LAST, nullptr, end_thread, nullptr, nullptr);
            return nullptr;
        },
        all.session);
    // Between two blocks, as if cancelled.
    CHECK_EQUAL(awqe_session_position(all.session), 128u);
    std::vector<float> resumed(kVocabulary), whole(kVocabulary);
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data() + 128, 172, AWQE_LOGITS_LAST,
                                      resumed.data(), nullptr, nullptr, nullptr),
                AWQE_OK);
    Everything fresh;
    CHECK_EQUAL(awqe_session_evaluate(fresh.session, tokens.data(), 300, AWQE_LOGITS_LAST,
                                      whole.data(), nullptr, nullptr, nullptr),
                AWQE_OK);
    CHECK(resumed == whole);
    run_in_thread(
        [](void*) -> void* {
            awqe_selftest(end_thread_of_selftest, nullptr, nullptr);
            return nullptr;
        },
        nullptr);
}

#if !defined(__SANITIZE_THREAD__)  // which ends a child that starts threads
TEST(a_forked_child_goes_on) {
    Everything all(0, 2);
    const std::vector<uint32_t> tokens = prompt(200);
    std::vector<float> expected(kVocabulary), actual(kVocabulary);
    const auto read = [&](size_t begin, size_t end, std::vector<float>& logits) {
        return awqe_session_evaluate(all.session, tokens.data() + begin, end - begin,
                                     AWQE_LOGITS_LAST, logits.data(), nullptr, nullptr, nullptr);
    };
    CHECK_EQUAL(read(0, 150, expected), AWQE_OK);
    const pid_t child = fork();
    if (child == 0) alarm(20);  // a child that hangs ends with a signal
    const awqe_status status = read(150, 200, child == 0 ? actual : expected);
    if (child == 0) {
        // The parent's logits are not known here: those of a fresh session are the same.
        const bool gone_on = status == AWQE_OK;
        awqe_session_truncate(all.session, 0, nullptr);
        const bool anew = read(0, 200, expected) == AWQE_OK;
        all.~Everything();
        _exit(gone_on && anew && actual == expected ? 0 : 1);
    }
    CHECK_EQUAL(status, AWQE_OK);
    int exit_status = -1;
    CHECK_EQUAL(waitpid(child, &exit_status, 0), child);
    CHECK_EQUAL(exit_status, 0);
}
#endif

TEST(a_row_of_logits_draws_what_its_session_draws) {
    Everything all;
    auto info = of_this_version<awqe_model_info>();
    CHECK_EQUAL(awqe_model_info_get(all.model, &info, nullptr), AWQE_OK);
    awqe_sampling options = sampling();
    options.temperature = 1;
    options.repetition_penalty = 1.5f;
    options.seed = 11;
    awqe_sampler* sampler = nullptr;
    CHECK_EQUAL(awqe_sampler_open(&options, &sampler, nullptr), AWQE_OK);
    const std::vector<uint32_t> tokens = {3, 1, 4, 1, 5, 9, 2, 6};
    const size_t vocabulary = info.vocabulary_size;
    std::vector<float> rows(tokens.size() * vocabulary), added(vocabulary);
    for (size_t i = 0; i < vocabulary; ++i)
        added[i] = i % 3 == 0 ? -INFINITY : 0.25f * float(i % 7);
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data(), tokens.size(), AWQE_LOGITS_ALL,
                                      rows.data(), nullptr, nullptr, nullptr),
                AWQE_OK);
    for (size_t count = tokens.size(); count > 0; --count) {
        // The session at each length, against the row of the one call.
        CHECK_EQUAL(awqe_session_truncate(all.session, uint32_t(count - 1), nullptr), AWQE_OK);
        CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data() + count - 1, 1,
                                          AWQE_LOGITS_LAST, nullptr, nullptr, nullptr, nullptr),
                    AWQE_OK);
        const float* const row = rows.data() + (count - 1) * vocabulary;
        for (uint64_t draw = 0; draw < 20; ++draw) {
            uint32_t expected = 0, token = 1;
            for (const float* const more :
                 {static_cast<const float*>(nullptr), static_cast<const float*>(added.data())}) {
                CHECK_EQUAL(awqe_sampler_seek(sampler, draw, nullptr), AWQE_OK);
                CHECK_EQUAL(more == nullptr
                                ? awqe_session_sample(all.session, sampler, &expected, nullptr)
                                : awqe_session_sample_adjusted(all.session, sampler, more,
                                                               vocabulary, &expected, nullptr),
                            AWQE_OK);
                CHECK_EQUAL(awqe_sampler_seek(sampler, draw, nullptr), AWQE_OK);
                CHECK_EQUAL(awqe_sampler_draw(sampler, row, vocabulary, tokens.data(), count, more,
                                              &token, nullptr),
                            AWQE_OK);
                CHECK_EQUAL(token, expected);
            }
        }
    }
    awqe_sampler_close(sampler);
}

TEST(null_objects_are_refused) {
    awqe_error error;
    const auto check_null = [&](awqe_status status, const char* name) {
        CHECK_EQUAL(status, AWQE_INVALID_ARGUMENT);
        check_error(error, AWQE_INVALID_ARGUMENT, std::string(name) + " is NULL");
    };
    Everything all;
    auto info = of_this_version<awqe_model_info>();
    auto entry = of_this_version<awqe_metadata>();
    auto tensor = of_this_version<awqe_tensor>();
    auto memory = of_this_version<awqe_memory>();
    awqe_session* session = nullptr;
    awqe_sampler* sampler = nullptr;
    uint32_t token = 7;
    double rate = 7;
    check_null(awqe_model_info_get(nullptr, &info, &error), "model");
    check_null(awqe_model_info_get(all.model, nullptr, &error), "info");
    check_null(awqe_model_metadata_at(nullptr, 0, &entry, &error), "model");
    check_null(awqe_model_metadata_at(all.model, 0, nullptr, &error), "entry");
    check_null(awqe_model_tensor_at(nullptr, 0, &tensor, &error), "model");
    check_null(awqe_model_tensor_at(all.model, 0, nullptr, &error), "tensor");
    check_null(awqe_session_memory(nullptr, nullptr, &memory, &error), "model");
    check_null(awqe_session_memory(all.model, nullptr, nullptr, &error), "memory");
    auto gpu_memory = of_this_version<awqe_gpu_memory>();
    check_null(awqe_session_gpu_memory(nullptr, nullptr, &gpu_memory, &error), "model");
    check_null(awqe_session_gpu_memory(all.model, nullptr, nullptr, &error), "memory");
    check_null(awqe_exit_on_unreadable_file(nullptr, 1, &error), "program");
    check_null(awqe_gpu_selftest(nullptr, nullptr, &error), "report");
    check_null(awqe_session_open(nullptr, nullptr, &session, &error), "model");
    check_null(awqe_session_open(all.model, nullptr, nullptr, &error), "session");
    check_null(awqe_session_truncate(nullptr, 0, &error), "session");
    check_null(awqe_session_tokens(nullptr, &token, 1, &error), "session");
    check_null(awqe_session_tokens(all.session, nullptr, 0, &error), "tokens");
    check_null(awqe_session_reusable(nullptr, &token, 1, &token, &error), "session");
    check_null(awqe_session_reusable(all.session, nullptr, 1, &token, &error), "tokens");
    check_null(awqe_session_reusable(all.session, &token, 1, nullptr, &error), "reusable");
    check_null(awqe_sampler_seek(nullptr, 0, &error), "sampler");
    check_null(awqe_session_evaluate(nullptr, &token, 1, AWQE_LOGITS_NONE, nullptr, nullptr,
                                     nullptr, &error),
               "session");
    check_null(awqe_session_evaluate(all.session, nullptr, 1, AWQE_LOGITS_NONE, nullptr, nullptr,
                                     nullptr, &error),
               "tokens");
    check_null(awqe_sampler_open(nullptr, &sampler, &error), "sampling");
    const awqe_sampling s = sampling();
    check_null(awqe_sampler_open(&s, nullptr, &error), "sampler");
    check_null(awqe_session_sample(nullptr, all.sampler, &token, &error), "session");
    CHECK_EQUAL(token, 0u);
    check_null(awqe_session_sample(all.session, nullptr, &token, &error), "sampler");
    check_null(awqe_session_sample(all.session, all.sampler, nullptr, &error), "token");
    CHECK_EQUAL(awqe_model_info_get(all.model, &info, nullptr), AWQE_OK);
    std::vector<float> row(info.vocabulary_size);
    const auto adjusted = [&](awqe_session* of, awqe_sampler* drawing, const float* added,
                              size_t count, uint32_t* drawn) {
        return awqe_session_sample_adjusted(of, drawing, added, count, drawn, &error);
    };
    check_null(adjusted(nullptr, all.sampler, row.data(), row.size(), &token), "session");
    check_null(adjusted(all.session, nullptr, row.data(), row.size(), &token), "sampler");
    check_null(adjusted(all.session, all.sampler, nullptr, row.size(), &token), "added");
    check_null(adjusted(all.session, all.sampler, row.data(), row.size(), nullptr), "token");
    CHECK_EQUAL(adjusted(all.session, all.sampler, row.data(), row.size() - 1, &token),
                AWQE_INVALID_ARGUMENT);
    const auto drawn_from = [&](awqe_sampler* drawing, const float* logits, size_t count,
                                const uint32_t* context, size_t length, uint32_t* drawn) {
        return awqe_sampler_draw(drawing, logits, count, context, length, nullptr, drawn, &error);
    };
    check_null(drawn_from(nullptr, row.data(), row.size(), nullptr, 0, &token), "sampler");
    check_null(drawn_from(all.sampler, nullptr, row.size(), nullptr, 0, &token), "logits");
    check_null(drawn_from(all.sampler, row.data(), row.size(), nullptr, 1, &token), "context");
    check_null(drawn_from(all.sampler, row.data(), row.size(), nullptr, 0, nullptr), "token");
    CHECK_EQUAL(drawn_from(all.sampler, row.data(), 0, nullptr, 0, &token), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(drawn_from(all.sampler, row.data(), row.size(), nullptr, 0, &token), AWQE_OK);
    check_null(awqe_session_logits(nullptr, row.data(), row.size(), &error), "session");
    check_null(awqe_session_logits(all.session, nullptr, row.size(), &error), "logits");
    CHECK_EQUAL(awqe_session_logits(all.session, row.data(), 0, &error), AWQE_INVALID_ARGUMENT);
    check_null(awqe_read_bandwidth(1, 1 << 20, nullptr, &error), "bytes_per_second");
    CHECK_EQUAL(awqe_read_bandwidth(1, 0, &rate, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(rate, 0.0);
    awqe_model_close(nullptr);
    awqe_session_close(nullptr);
    awqe_sampler_close(nullptr);
    CHECK_EQUAL(std::string(awqe_session_kernels(nullptr)), "");
    CHECK_EQUAL(awqe_session_threads(nullptr, true), 0u);
    CHECK_EQUAL(awqe_session_position(nullptr), 0u);
}

TEST(structures_of_another_version_are_refused_and_left_alone) {
    Everything all;
    awqe_error error;
    const auto check_size = [&](awqe_status status, const char* name) {
        CHECK_EQUAL(status, AWQE_INVALID_ARGUMENT);
        check_error(error, AWQE_INVALID_ARGUMENT, std::string(name) + ".struct_size is ");
    };
    awqe_model_info info = {};
    info.struct_size = sizeof(info) - 4;
    info.layers = 77;
    check_size(awqe_model_info_get(all.model, &info, &error), "info");
    CHECK_EQUAL(info.layers, 77u);
    awqe_metadata entry = {};
    check_size(awqe_model_metadata_at(all.model, 0, &entry, &error), "entry");
    awqe_tensor tensor = {};
    check_size(awqe_model_tensor_at(all.model, 0, &tensor, &error), "tensor");
    awqe_memory memory = {};
    check_size(awqe_session_memory(all.model, nullptr, &memory, &error), "memory");
    memory.struct_size = sizeof(memory);
    awqe_session_options options = {};
    check_size(awqe_session_memory(all.model, &options, &memory, &error), "options");
    awqe_gpu_memory gpu_memory = {};
    gpu_memory.layers = 77;
    check_size(awqe_session_gpu_memory(all.model, nullptr, &gpu_memory, &error), "memory");
    CHECK_EQUAL(gpu_memory.layers, 77u);
    gpu_memory.struct_size = sizeof(gpu_memory);
    check_size(awqe_session_gpu_memory(all.model, &options, &gpu_memory, &error), "options");
    awqe_session* session = nullptr;
    check_size(awqe_session_open(all.model, &options, &session, &error), "options");
    awqe_sampling s = sampling();
    s.struct_size = 0;
    awqe_sampler* sampler = nullptr;
    check_size(awqe_sampler_open(&s, &sampler, &error), "sampling");
}

TEST(session_options) {
    Everything all;
    awqe_error error;
    awqe_session* session = nullptr;
    auto options = of_this_version<awqe_session_options>();
    options.context_length = kContext + 1;
    awqe_session_open(all.model, &options, &session, &error);
    CHECK(session == nullptr);
    check_error(error, AWQE_INVALID_ARGUMENT,
                "is 321, but the model was trained for 320 positions");
    options.context_length = 0;
    options.threads = 1u << 31;
    awqe_session_open(all.model, &options, &session, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "options.threads is 2147483648");
    options.threads = 0;
    options.kv_type = 2;
    awqe_session_open(all.model, &options, &session, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "options.kv_type is 2");
    auto gpu_memory = of_this_version<awqe_gpu_memory>();
    awqe_session_gpu_memory(all.model, &options, &gpu_memory, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "options.kv_type is 2");
    options.kv_type = AWQE_KV_F16;
    options.attention = 2;
    awqe_session_open(all.model, &options, &session, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "options.attention is 2");
    options.attention = AWQE_ATTENTION_TENSOR;
    for (const awqe_device device : {AWQE_DEVICE_CPU, AWQE_DEVICE_AUTO}) {
        options.device = device;
        awqe_session_open(all.model, &options, &session, &error);
        check_error(error, AWQE_INVALID_ARGUMENT, "it goes with the device cuda");
    }
    CHECK(session == nullptr);
    setenv("AWQ_EDGE_KERNELS", "abacus", 1);
    awqe_session_open(all.model, nullptr, &session, &error);
    check_error(error, AWQE_UNSUPPORTED, "abacus");
    CHECK(session == nullptr);
    setenv("AWQ_EDGE_KERNELS", "reference", 1);
    CHECK_EQUAL(awqe_session_open(all.model, nullptr, &session, &error), AWQE_OK);
    CHECK_EQUAL(std::string(awqe_session_kernels(session)), "reference");
    CHECK(awqe_session_threads(session, true) >= 1);
    awqe_session_close(session);
    unsetenv("AWQ_EDGE_KERNELS");
}

TEST(tokens_and_context) {
    Everything all(10);
    awqe_error error;
    const std::vector<uint32_t> tokens = prompt(11);
    const auto evaluate = [&](const uint32_t* ids, size_t count,
                              uint32_t which = AWQE_LOGITS_LAST) {
        return awqe_session_evaluate(all.session, ids, count, which, nullptr, nullptr, nullptr,
                                     &error);
    };
    uint32_t token = 0;
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error),
                AWQE_INVALID_ARGUMENT);
    check_error(error, AWQE_INVALID_ARGUMENT, "no logits to sample from");
    evaluate(tokens.data(), 11);
    check_error(error, AWQE_CONTEXT_FULL,
                "the context holds 0 of 10 tokens, there is no room for 11 more");
    // Nobody knows whether so many can be read.
    for (const size_t count :
         {size_t{11}, size_t{1} << 20, size_t{1} << 62, SIZE_MAX - 9, SIZE_MAX / 4 + 2, SIZE_MAX}) {
        evaluate(tokens.data() + tokens.size(), count);
        check_error(error, AWQE_CONTEXT_FULL, "there is no room for " + std::to_string(count));
    }
    evaluate(tokens.data(), 0);
    check_error(error, AWQE_INVALID_ARGUMENT, "no tokens");
    const uint32_t outside[] = {1, kVocabulary};
    evaluate(outside, 2);
    check_error(error, AWQE_INVALID_ARGUMENT, "token 1 is 203, the model's vocabulary ends at 202");
    for (const uint32_t which : {3u, 7u, UINT32_MAX}) {
        evaluate(tokens.data(), 1, which);
        check_error(error, AWQE_INVALID_ARGUMENT, "which is " + std::to_string(which));
    }
    CHECK_EQUAL(awqe_session_position(all.session), 0u);

    CHECK_EQUAL(evaluate(tokens.data(), 10), AWQE_OK);
    CHECK_EQUAL(awqe_session_position(all.session), 10u);
    CHECK_EQUAL(evaluate(tokens.data(), 1), AWQE_CONTEXT_FULL);
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error), AWQE_OK);
    awqe_session_truncate(all.session, 11, &error);
    check_error(error, AWQE_INVALID_ARGUMENT,
                "position is 11, but the context holds only 10 tokens");
    CHECK_EQUAL(awqe_session_truncate(all.session, 10, &error), AWQE_OK);
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error), AWQE_OK);
    CHECK_EQUAL(awqe_session_truncate(all.session, 4, &error), AWQE_OK);
    CHECK_EQUAL(awqe_session_position(all.session), 4u);
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error),
                AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(evaluate(tokens.data() + 4, 6, AWQE_LOGITS_NONE), AWQE_OK);
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error),
                AWQE_INVALID_ARGUMENT);
}

TEST(the_context_can_be_asked_for_and_a_text_reuses_it) {
    Everything all;
    const std::vector<uint32_t> tokens = prompt(12);
    awqe_error error;
    const auto reusable = [&](const std::vector<uint32_t>& text) {
        uint32_t count = 99;
        CHECK_EQUAL(awqe_session_reusable(all.session, text.data(), text.size(), &count, &error),
                    AWQE_OK);
        return count;
    };
    CHECK_EQUAL(reusable(tokens), 0u);
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data(), 10, AWQE_LOGITS_LAST, nullptr,
                                      nullptr, nullptr, &error),
                AWQE_OK);
    std::vector<uint32_t> held(10);
    CHECK_EQUAL(awqe_session_tokens(all.session, held.data(), 10, &error), AWQE_OK);
    CHECK(std::equal(held.begin(), held.end(), tokens.begin()));
    awqe_session_tokens(all.session, held.data(), 11, &error);
    check_error(error, AWQE_INVALID_ARGUMENT, "only 10 tokens");

    CHECK_EQUAL(reusable(tokens), 10u);
    CHECK_EQUAL(reusable({tokens.begin(), tokens.begin() + 10}), 10u);  // its logits are there
    CHECK_EQUAL(reusable({tokens.begin(), tokens.begin() + 5}), 4u);    // these are not
    std::vector<uint32_t> other = tokens;
    other[3] ^= 1;
    CHECK_EQUAL(reusable(other), 3u);
    CHECK_EQUAL(awqe_session_truncate(all.session, 5, &error), AWQE_OK);
    CHECK_EQUAL(reusable({tokens.begin(), tokens.begin() + 5}), 4u);
}

TEST(a_session_in_a_call_refuses_another) {
    Everything all;
    const std::vector<uint32_t> tokens = prompt(300);
    struct Meeting {
        Everything* all;
        std::vector<awqe_status> statuses;
        uint32_t position;
    } meeting = {&all, {}, 0};
    const awqe_progress progress = [](void* user, size_t, size_t) {
        auto* const m = static_cast<Meeting*>(user);
        awqe_session* const session = m->all->session;
        uint32_t token = 1;
        m->position = awqe_session_position(session);
        m->statuses.push_back(awqe_session_truncate(session, 0, nullptr));
        m->statuses.push_back(awqe_session_tokens(session, &token, 1, nullptr));
        m->statuses.push_back(awqe_session_reusable(session, &token, 1, &token, nullptr));
        m->statuses.push_back(awqe_session_sample(session, m->all->sampler, &token, nullptr));
        m->statuses.push_back(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_LAST, nullptr,
                                                    nullptr, nullptr, nullptr));
        return false;
    };
    awqe_error error;
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data(), 300, AWQE_LOGITS_LAST, nullptr,
                                      progress, &meeting, &error),
                AWQE_CANCELLED);
    CHECK_EQUAL(meeting.position, 128u);
    CHECK(meeting.statuses == std::vector<awqe_status>(5, AWQE_INVALID_ARGUMENT));
    // A call that failed has left it.
    CHECK_EQUAL(awqe_session_position(all.session), 128u);
    CHECK_EQUAL(awqe_session_truncate(all.session, 0, &error), AWQE_OK);
}

TEST(a_truncated_context_goes_on_as_if_never_longer) {
    Everything straight, detour;
    const std::vector<uint32_t> tokens = prompt(40);
    std::vector<uint32_t> other = tokens;
    for (size_t i = 20; i < 40; ++i) other[i] = 5;
    std::vector<float> expected(kVocabulary), actual(kVocabulary);
    const auto evaluate = [](awqe_session* session, const uint32_t* ids, size_t count,
                             float* logits) {
        CHECK_EQUAL(awqe_session_evaluate(session, ids, count, AWQE_LOGITS_LAST, logits, nullptr,
                                          nullptr, nullptr),
                    AWQE_OK);
    };
    evaluate(straight.session, tokens.data(), 40, expected.data());
    evaluate(detour.session, other.data(), 40, actual.data());
    CHECK(std::memcmp(actual.data(), expected.data(), kVocabulary * sizeof(float)) != 0);
    CHECK_EQUAL(awqe_session_truncate(detour.session, 20, nullptr), AWQE_OK);
    evaluate(detour.session, tokens.data() + 20, 20, actual.data());
    CHECK(std::memcmp(actual.data(), expected.data(), kVocabulary * sizeof(float)) == 0);
}

TEST(a_callback_cancels_between_blocks) {
    Everything all;
    const std::vector<uint32_t> tokens = prompt(300);
    struct Calls {
        std::vector<size_t> done;
        size_t stop_after;
    } calls = {{}, 2};
    const awqe_progress progress = [](void* user, size_t done, size_t total) {
        auto* const c = static_cast<Calls*>(user);
        if (total != 300) return false;
        c->done.push_back(done);
        return c->done.size() < c->stop_after;
    };
    awqe_error error;
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data(), 300, AWQE_LOGITS_LAST, nullptr,
                                      progress, &calls, &error),
                AWQE_CANCELLED);
    check_error(error, AWQE_CANCELLED, "cancelled after 256 of 300 tokens");
    CHECK(calls.done == (std::vector<size_t>{128, 256}));
    CHECK_EQUAL(awqe_session_position(all.session), 256u);
    uint32_t token = 0;
    CHECK_EQUAL(awqe_session_sample(all.session, all.sampler, &token, &error),
                AWQE_INVALID_ARGUMENT);

    // What was kept is a whole context: going on gives what an undisturbed session gives.
    std::vector<float> resumed(kVocabulary), whole(kVocabulary);
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data() + 256, 44, AWQE_LOGITS_LAST,
                                      resumed.data(), nullptr, nullptr, &error),
                AWQE_OK);
    Everything fresh;
    calls = {{}, 100};
    CHECK_EQUAL(awqe_session_evaluate(fresh.session, tokens.data(), 300, AWQE_LOGITS_LAST,
                                      whole.data(), progress, &calls, &error),
                AWQE_OK);
    CHECK_EQUAL(calls.done.size(), size_t{2});
    CHECK(std::memcmp(resumed.data(), whole.data(), kVocabulary * sizeof(float)) == 0);
}

TEST(sampling_reads_a_copy_of_the_last_logits) {
    Everything all;
    awqe_sampling greedy = sampling();
    greedy.temperature = 0;
    awqe_sampler* sampler = nullptr;
    CHECK_EQUAL(awqe_sampler_open(&greedy, &sampler, nullptr), AWQE_OK);
    const std::vector<uint32_t> tokens = prompt(3);
    std::vector<float> logits(3 * kVocabulary);
    CHECK_EQUAL(awqe_session_evaluate(all.session, tokens.data(), 3, AWQE_LOGITS_ALL, logits.data(),
                                      nullptr, nullptr, nullptr),
                AWQE_OK);
    uint32_t expected = 0;
    for (uint32_t i = 1; i < kVocabulary; ++i) {
        if (logits[2 * kVocabulary + i] > logits[2 * kVocabulary + expected]) expected = i;
    }
    std::fill(logits.begin(), logits.end(), 0.0f);
    uint32_t token = 0;
    CHECK_EQUAL(awqe_session_sample(all.session, sampler, &token, nullptr), AWQE_OK);
    CHECK_EQUAL(token, expected);
    CHECK(expected != 0);  // what the overwritten array would give
    awqe_sampler_close(sampler);
}

TEST(a_ring_goes_back_as_far_as_it_remembers) {
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        awqe_model* model = nullptr;
        CHECK_EQUAL(awqe_model_open(kTiny, &model, nullptr), AWQE_OK);
        auto options = of_this_version<awqe_session_options>();
        options.threads = options.prefill_threads = 1;
        options.kv_type = kv_type;
        awqe_session* session = nullptr;
        CHECK_EQUAL(awqe_session_open(model, &options, &session, nullptr), AWQE_OK);
        std::vector<uint32_t> tokens(kContext);
        for (uint32_t i = 0; i < kContext; ++i) tokens[i] = (i * i + 3) % kVocabulary;
        std::vector<float> logits(kVocabulary), again(kVocabulary);
        const auto read = [&](uint32_t begin, std::vector<float>& out) {
            CHECK_EQUAL(
                awqe_session_evaluate(session, tokens.data() + begin, kContext - begin,
                                      AWQE_LOGITS_LAST, out.data(), nullptr, nullptr, nullptr),
                AWQE_OK);
        };
        CHECK_EQUAL(awqe_session_earliest(session), 0u);
        read(0, logits);
        // 320 positions went through 192 rows; position p needs those from p - 36 on.
        constexpr uint32_t kEarliest = 320 - 192 + 36;
        CHECK_EQUAL(awqe_session_earliest(session), kEarliest);
        awqe_error error;
        CHECK_EQUAL(awqe_session_truncate(session, kEarliest - 1, &error), AWQE_INVALID_ARGUMENT);
        check_error(error, AWQE_INVALID_ARGUMENT, "needed from 164 on");
        CHECK_EQUAL(awqe_session_position(session), kContext);
        CHECK_EQUAL(awqe_session_truncate(session, kEarliest, &error), AWQE_OK);
        read(kEarliest, again);
        CHECK(again == logits);
        CHECK_EQUAL(awqe_session_truncate(session, 0, &error), AWQE_OK);
        CHECK_EQUAL(awqe_session_earliest(session), 0u);
        read(0, again);
        CHECK(again == logits);
        awqe_session_close(session);
        awqe_model_close(model);
    }
    CHECK_EQUAL(awqe_session_earliest(nullptr), 0u);
}

TEST(measured_threads_are_some_of_this_machine) {
    awqe_model* model = nullptr;
    CHECK_EQUAL(awqe_model_open(kTiny, &model, nullptr), AWQE_OK);
    uint32_t threads = 0;
    CHECK_EQUAL(awqe_model_measure_threads(model, &threads, nullptr), AWQE_OK);
    CHECK(threads >= 1 && threads <= 1024);
    awqe_error error;
    CHECK_EQUAL(awqe_model_measure_threads(model, nullptr, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(awqe_model_measure_threads(nullptr, &threads, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(threads, 0u);
    awqe_model_close(model);
}

TEST(announced_memory_is_what_a_session_takes) {
    awqe_model* model = nullptr;
    CHECK_EQUAL(awqe_model_open(kTiny, &model, nullptr), AWQE_OK);
    auto options = of_this_version<awqe_session_options>();
    options.threads = options.prefill_threads = 1;
    auto memory = of_this_version<awqe_memory>();
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    // keys and values, 2 bytes, 3 heads of 14; two layers of 320 positions and one with a window of
    // 37, which keeps that and a block of 128 in whole chunks of 64
    constexpr uint64_t kPositions = 2 * 320 + 192;
    CHECK_EQUAL(memory.cache_bytes, 2 * 2 * 3 * 14 * kPositions);
    options.kv_type = AWQE_KV_INT8;
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    CHECK_EQUAL(memory.cache_bytes, 2 * 3 * (14 + 4) * kPositions);
    options.kv_type = AWQE_KV_F16;
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    CHECK_EQUAL(memory.weight_bytes, uint64_t{183296});
    const uint64_t one_thread = memory.scratch_bytes;
    options.prefill_threads = 5;
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    CHECK(memory.scratch_bytes > one_thread);
    options.prefill_threads = 1;
    options.context_length = 16;
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    CHECK(memory.scratch_bytes < one_thread);

    // The address space grows by just that, in whole pages. The first session lets the heap grow.
    options.context_length = 0;
    CHECK_EQUAL(awqe_session_memory(model, &options, &memory, nullptr), AWQE_OK);
    awqe_session* session = nullptr;
    uint64_t before = 0, after = 0;
    const size_t threads = thread_count();
    for (int round = 0; round < 2; ++round) {
        wait_for_threads(threads);
        before = address_space_bytes();
        CHECK_EQUAL(awqe_session_open(model, &options, &session, nullptr), AWQE_OK);
        after = address_space_bytes();
        awqe_session_close(session);
    }
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    CHECK_EQUAL(after - before, (memory.cache_bytes + page - 1) / page * page +
                                    (memory.scratch_bytes + page - 1) / page * page);
    awqe_model_close(model);
}

TEST(no_failing_allocation_comes_through) {
    awqe_session_options options = of_this_version<awqe_session_options>();
    options.threads = options.prefill_threads = 3;
    const awqe_sampling s = sampling();
    // Calls `entry` with its first, second, … allocation failing, until it gets through.
    const auto exhaust = [](const char* name, auto entry) {
        for (long failing = 1;; ++failing) {
            CHECK(failing < 100000);
            failing_allocation = failing;
            awqe_error error;
            const awqe_status status = entry(&error);
            const bool reached = failing_allocation == 0;
            failing_allocation = 0;
            if (!reached) {
                CHECK_EQUAL(status, AWQE_OK);
                return failing - 1;
            }
            if (status != AWQE_OUT_OF_MEMORY)
                fail(__FILE__, __LINE__, std::string(name) + ": " + error.message);
        }
    };
    awqe_model* model = nullptr;
    const long for_model = exhaust("awqe_model_open", [&](awqe_error* error) {
        const awqe_status status = awqe_model_open(kTiny, &model, error);
        CHECK_EQUAL(status == AWQE_OK, model != nullptr);
        return status;
    });
    CHECK(for_model > 10);
    awqe_session* session = nullptr;
    const long for_session = exhaust("awqe_session_open", [&](awqe_error* error) {
        const awqe_status status = awqe_session_open(model, &options, &session, error);
        CHECK_EQUAL(status == AWQE_OK, session != nullptr);
        return status;
    });
    CHECK(for_session >= 5);  // the session, the workers, their threads' states
    awqe_sampler* sampler = nullptr;
    CHECK(exhaust("awqe_sampler_open",
                  [&](awqe_error* error) { return awqe_sampler_open(&s, &sampler, error); }) > 0);
    const std::vector<uint32_t> tokens = prompt(20);
    // Evaluating allocates nothing, not even the first time.
    CHECK_EQUAL(exhaust("awqe_session_evaluate",
                        [&](awqe_error* error) {
                            return awqe_session_evaluate(session, tokens.data(), tokens.size(),
                                                         AWQE_LOGITS_LAST, nullptr, nullptr,
                                                         nullptr, error);
                        }),
                0L);
    uint32_t token = 0;
    CHECK(exhaust("awqe_session_sample", [&](awqe_error* error) {
              return awqe_session_sample(session, sampler, &token, error);
          }) > 0);
    CHECK_EQUAL(
        exhaust("awqe_session_truncate",
                [&](awqe_error* error) { return awqe_session_truncate(session, 0, error); }),
        0L);
    double rate = 0;
    CHECK(exhaust("awqe_read_bandwidth", [&](awqe_error* error) {
              return awqe_read_bandwidth(2, 1 << 20, &rate, error);
          }) > 0);
    CHECK(rate > 0);
    awqe_sampler_close(sampler);
    awqe_session_close(session);
    awqe_model_close(model);

    const Bytes bytes = random_vision_model().build();
    const int file = memfd_create("vision.awq.gguf", MFD_CLOEXEC);
    CHECK(write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    const std::string path = "/proc/self/fd/" + std::to_string(file);
    CHECK(exhaust("awqe_model_open, with a vision part", [&](awqe_error* error) {
              return awqe_model_open(path.c_str(), &model, error);
          }) > for_model);
    close(file);
    auto info = of_this_version<awqe_vision_info>();
    CHECK_EQUAL(
        exhaust("awqe_vision_info_get",
                [&](awqe_error* error) { return awqe_vision_info_get(model, &info, error); }),
        0L);
    const std::vector<uint8_t> pixels(size_t{3} * info.image_size * info.image_size, 99);
    std::vector<float> embeddings(size_t{info.tokens} * info.embedding_size);
    CHECK(exhaust("awqe_vision_encode", [&](awqe_error* error) {
              return awqe_vision_encode(model, pixels.data(), 1, 0, 0, 3, embeddings.data(),
                                        nullptr, nullptr, error);
          }) > 0);
    awqe_model_close(model);
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
