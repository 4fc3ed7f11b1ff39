// One hash over all logits of a fixed prompt and of 50 tokens decoded after it, on
// tests/data/tiny.awq.gguf: the same for every kernel table, every thread count and every way to
// cut the prompt into calls. That the hash is the right one shows
// tests/python/test_runtime_oracle.py; a change of it is a change of native/ARITHMETIC.md.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/tables.h"

namespace awqe::test {
namespace {

constexpr uint64_t kGolden = 0x3edf67db3848ed9a;
constexpr uint64_t kGoldenInt8 = 0xb64d98304c9d27af;  // with an int8 cache
constexpr size_t kPrompt = 200;  // tokens: more than a block of the prompt, three chunks of
                                 // attention, several sliding windows
constexpr size_t kDecoded = 50;
constexpr size_t kVocabulary = 203;

awqe_model* tiny_model() {
    static const OwnedModel model = open_model(AWQE_TEST_DATA "/tiny.awq.gguf");
    return model.get();
}

// FNV-1a over the bytes of floats.
uint64_t hash_more(uint64_t hash, const float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, values + i, sizeof(bits));
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (bits >> shift & 0xFF)) * 0x100000001B3u;
    }
    return hash;
}

// The prompt in calls of `chunk` tokens, then greedy decoding.
uint64_t hash_of_run(const char* kernels, uint32_t threads, size_t chunk, awqe_kv_type kv_type) {
    setenv("AWQ_EDGE_KERNELS", kernels, 1);
    awqe_error error;
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.threads = options.prefill_threads = threads;
    options.kv_type = kv_type;
    awqe_session* opened = nullptr;
    need(awqe_session_open(tiny_model(), &options, &opened, &error), error);
    const OwnedSession session(opened);
    CHECK(std::strcmp(awqe_session_kernels(opened), kernels) == 0);
    CHECK_EQUAL(awqe_session_threads(opened, false), threads);
    CHECK_EQUAL(awqe_session_threads(opened, true), threads);

    std::vector<uint32_t> prompt(kPrompt);
    for (uint32_t i = 0; i < kPrompt; ++i) prompt[i] = (17 * i * i + 5 * i + 3) % kVocabulary;
    std::vector<float> logits(kPrompt * kVocabulary);
    for (size_t done = 0; done < kPrompt; done += chunk) {
        need(awqe_session_evaluate(opened, prompt.data() + done, std::min(chunk, kPrompt - done),
                                   AWQE_LOGITS_ALL, logits.data() + done * kVocabulary, nullptr,
                                   nullptr, &error),
             error);
    }
    uint64_t hash = hash_more(0xCBF29CE484222325u, logits.data(), logits.size());

    awqe_sampling greedy = {};
    greedy.struct_size = sizeof(greedy);
    greedy.top_p = greedy.repetition_penalty = 1;
    awqe_sampler* sampler_opened = nullptr;
    need(awqe_sampler_open(&greedy, &sampler_opened, &error), error);
    const OwnedSampler sampler(sampler_opened);
    for (size_t i = 0; i < kDecoded; ++i) {
        uint32_t token = 0;
        need(awqe_session_sample(opened, sampler_opened, &token, &error), error);
        need(awqe_session_evaluate(opened, &token, 1, AWQE_LOGITS_LAST, logits.data(), nullptr,
                                   nullptr, &error),
             error);
        hash = hash_more(hash, logits.data(), kVocabulary);
    }
    CHECK_EQUAL(awqe_session_position(opened), uint32_t{kPrompt + kDecoded});
    return hash;
}

void check_golden(const char* kernels, uint32_t threads, size_t chunk) {
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        const uint64_t golden = kv_type == AWQE_KV_F16 ? kGolden : kGoldenInt8;
        const uint64_t hash = hash_of_run(kernels, threads, chunk, kv_type);
        if (hash == golden) continue;
        std::ostringstream text;
        text << kernels << " with " << threads << " threads, prompt in calls of " << chunk
             << (kv_type == AWQE_KV_F16 ? "" : ", int8 cache") << ": hash 0x" << std::hex << hash
             << ", not 0x" << golden;
        fail(__FILE__, __LINE__, text.str());
    }
}

}  // namespace

TEST(every_table) {
    for (const KernelTable* table : runnable_tables()) check_golden(table->name, 1, kPrompt);
}

TEST(every_thread_count) {
    for (const KernelTable* table : runnable_tables()) {
        for (uint32_t threads : {2u, 3u, 4u, 7u}) check_golden(table->name, threads, kPrompt);
    }
}

TEST(every_way_to_cut_the_prompt) {
    for (const KernelTable* table : runnable_tables()) {
        check_golden(table->name, 1, 1);
        check_golden(table->name, 1, 7);
        check_golden(table->name, 3, 7);
        check_golden(table->name, 2, 129);  // a block and one token more
    }
}

TEST(logits_of_the_last_token_alone_are_the_same) {
    setenv("AWQ_EDGE_KERNELS", "", 1);
    std::vector<uint32_t> prompt(kPrompt);
    for (uint32_t i = 0; i < kPrompt; ++i) prompt[i] = (17 * i * i + 5 * i + 3) % kVocabulary;
    awqe_error error;
    std::vector<float> all(kPrompt * kVocabulary), last(kVocabulary), after_silence(kVocabulary);
    const auto with_session = [&](auto body) {
        awqe_session* opened = nullptr;
        need(awqe_session_open(tiny_model(), nullptr, &opened, &error), error);
        const OwnedSession session(opened);
        body(opened);
    };
    const auto evaluate = [&](awqe_session* session, size_t begin, size_t end, awqe_logits which,
                              float* out) {
        need(awqe_session_evaluate(session, prompt.data() + begin, end - begin, which, out, nullptr,
                                   nullptr, &error),
             error);
    };
    with_session([&](awqe_session* s) { evaluate(s, 0, kPrompt, AWQE_LOGITS_ALL, all.data()); });
    with_session([&](awqe_session* s) { evaluate(s, 0, kPrompt, AWQE_LOGITS_LAST, last.data()); });
    with_session([&](awqe_session* s) {
        evaluate(s, 0, 150, AWQE_LOGITS_NONE, nullptr);
        evaluate(s, 150, kPrompt - 1, AWQE_LOGITS_NONE, nullptr);
        evaluate(s, kPrompt - 1, kPrompt, AWQE_LOGITS_LAST, after_silence.data());
    });
    const float* const expected = all.data() + (kPrompt - 1) * kVocabulary;
    check_same_bits(last.data(), expected, kVocabulary, "logits of the last token");
    check_same_bits(after_silence.data(), expected, kVocabulary, "logits after calls without any");
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
