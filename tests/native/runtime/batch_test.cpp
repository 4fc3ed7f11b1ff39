// Sessions that are evaluated together get the bits that each gets alone: for every kernel table,
// thread count, type of cache and order of joining and leaving, with prompts being read beside
// decoding, on tests/data/tiny.awq.gguf, whose middle layer keeps a ring.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "awq_edge.h"
#include "native/runtime/model.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/random.h"
#include "tests/native/support/tables.h"

namespace awqe::test {
namespace {

constexpr const char* kTiny = AWQE_TEST_DATA "/tiny.awq.gguf";
constexpr size_t kVocabulary = 203;
constexpr size_t kHidden = 72;
constexpr size_t kContext = 320;
constexpr size_t kSessions = 9;

size_t below(Random& random, size_t limit) { return random.bits() % limit; }

uint32_t token_at(size_t text, size_t position) {
    return static_cast<uint32_t>((position * position * (text + 3) + 7 * position + 11 * text) %
                                 kVocabulary);
}

std::vector<uint32_t> tokens_of(size_t text, size_t begin, size_t end) {
    std::vector<uint32_t> tokens;
    for (size_t i = begin; i < end; ++i) tokens.push_back(token_at(text, i));
    return tokens;
}

// Logits after each token of a text that a session reads alone: [kContext, vocabulary].
std::vector<float> logits_alone(const OwnedModel& model, size_t text, awqe_kv_type kv_type) {
    const OwnedSession session = open_session(model, "", 1, kv_type);
    const std::vector<uint32_t> tokens = tokens_of(text, 0, kContext);
    std::vector<float> logits(kContext * kVocabulary);
    awqe_error error;
    need(awqe_session_evaluate(session.get(), tokens.data(), kContext, AWQE_LOGITS_ALL,
                               logits.data(), nullptr, nullptr, &error),
         error);
    return logits;
}

// What the head reads after each token of a text that a session reads alone, token by token and
// without any logits: [kContext, hidden].
std::vector<float> hidden_alone(const OwnedModel& model, size_t text, awqe_kv_type kv_type) {
    const OwnedSession session = open_session(model, "reference", 1, kv_type);
    const std::vector<uint32_t> tokens = tokens_of(text, 0, kContext);
    std::vector<float> hidden(kContext * kHidden);
    for (size_t i = 0; i < kContext; ++i) {
        awqe_batch_input input = {};
        input.struct_size = sizeof(input);
        input.session = session.get();
        input.which = AWQE_LOGITS_NONE;
        input.tokens = tokens.data() + i;
        input.count = 1;
        input.hidden = hidden.data() + i * kHidden;
        awqe_error error;
        need(awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error), error);
    }
    return hidden;
}

const std::vector<std::vector<float>>& all_hidden(awqe_kv_type kv_type) {
    static std::vector<std::vector<float>> all[2];
    if (all[kv_type].empty()) {
        const OwnedModel model = open_model(kTiny);
        for (size_t text = 0; text < kSessions; ++text) {
            all[kv_type].push_back(hidden_alone(model, text, kv_type));
        }
    }
    return all[kv_type];
}

// Every text alone, for one type of cache; the same for every table and thread count, as
// golden_test.cpp shows.
const std::vector<std::vector<float>>& all_alone(awqe_kv_type kv_type) {
    static std::vector<std::vector<float>> all[2];
    if (all[kv_type].empty()) {
        const OwnedModel model = open_model(kTiny);
        for (size_t text = 0; text < kSessions; ++text) {
            all[kv_type].push_back(logits_alone(model, text, kv_type));
        }
    }
    return all[kv_type];
}

// One session of a batch: which text it reads, and where its logits go.
struct Reader {
    OwnedSession session;
    size_t text = 0;
    size_t position = 0;
    size_t count = 0;    // in this call
    bool all = false;    // logits of every token
    bool none = false;   // no logits
    bool inner = false;  // what the head reads, too
    std::vector<uint32_t> tokens;
    std::vector<float> logits;
    std::vector<float> hidden;
};

awqe_batch_input input_of(Reader& reader) {
    awqe_batch_input input = {};
    input.struct_size = sizeof(input);
    input.which = reader.none ? AWQE_LOGITS_NONE : reader.all ? AWQE_LOGITS_ALL : AWQE_LOGITS_LAST;
    input.session = reader.session.get();
    reader.tokens = tokens_of(reader.text, reader.position, reader.position + reader.count);
    input.tokens = reader.tokens.data();
    input.count = reader.count;
    reader.logits.assign((reader.all ? reader.count : 1) * kVocabulary, -1.0f);
    input.logits = reader.logits.data();
    reader.hidden.assign(reader.inner ? reader.count * kHidden : 0, -1.0f);
    input.hidden = reader.inner ? reader.hidden.data() : nullptr;
    return input;
}

void check_rows(const Reader& reader, awqe_kv_type kv_type, const std::string& what) {
    const std::vector<float>& expected = all_alone(kv_type)[reader.text];
    const std::vector<float> inner(
        all_hidden(kv_type)[reader.text].begin() + long(reader.position * kHidden),
        all_hidden(kv_type)[reader.text].begin() +
            long((reader.position + (reader.inner ? reader.count : 0)) * kHidden));
    if (reader.hidden != inner) {
        fail(__FILE__, __LINE__,
             what + ": what the head reads of text " + std::to_string(reader.text) +
                 " differs from position " + std::to_string(reader.position));
    }
    if (reader.none) return;
    const size_t rows = reader.all ? reader.count : 1;
    const float* const first =
        expected.data() + (reader.position + reader.count - rows) * kVocabulary;
    if (std::memcmp(reader.logits.data(), first, rows * kVocabulary * sizeof(float)) != 0) {
        fail(__FILE__, __LINE__,
             what + ": text " + std::to_string(reader.text) + " differs at position " +
                 std::to_string(reader.position) + " of " + std::to_string(reader.count));
    }
}

// Sessions join, decode, read long prompts in parts, go back and leave, as `random` says.
void check_together(const OwnedModel& model, const char* kernels, uint32_t threads,
                    awqe_kv_type kv_type, uint64_t seed, int calls) {
    const std::string what = std::string(kernels) + ", " + std::to_string(threads) + " threads, " +
                             (kv_type == AWQE_KV_F16 ? "fp16" : "int8") + ", seed " +
                             std::to_string(seed);
    Random random(seed);
    std::vector<Reader> readers;
    for (int call = 0; call < calls; ++call) {
        while (readers.size() < kSessions && (readers.empty() || below(random, 3) > 0)) {
            Reader reader;
            reader.session = open_session(model, kernels, threads, kv_type);
            reader.text = below(random, kSessions);
            readers.insert(readers.begin() + static_cast<long>(below(random, readers.size() + 1)),
                           std::move(reader));
        }
        std::vector<awqe_batch_input> inputs;
        std::vector<Reader*> asked;
        for (Reader& reader : readers) {
            if (below(random, 5) == 0) continue;  // waits for its user
            const size_t room = kContext - reader.position;
            const size_t wish = reader.position == 0 ? 1 + below(random, 200) : 1;
            reader.count = std::min<size_t>(room, wish);
            reader.all = below(random, 6) == 0;
            reader.none = below(random, 6) == 0;
            reader.inner = below(random, 3) == 0;
            if (reader.count == 0) continue;
            inputs.push_back(input_of(reader));
            asked.push_back(&reader);
        }
        if (inputs.empty()) continue;
        awqe_error error;
        need(awqe_batch_evaluate(inputs.data(), inputs.size(), nullptr, nullptr, &error), error);
        for (Reader* reader : asked) {
            check_rows(*reader, kv_type, what);
            reader->position += reader->count;
            CHECK_EQUAL(awqe_session_position(reader->session.get()), uint32_t(reader->position));
        }
        for (size_t i = readers.size(); i-- > 0;) {
            Reader& reader = readers[i];
            const size_t chance = below(random, 12);
            if (chance == 0) {
                readers.erase(readers.begin() + static_cast<long>(i));
            } else if (chance == 1) {
                const size_t earliest = awqe_session_earliest(reader.session.get());
                if (reader.position <= earliest) continue;
                reader.position = earliest + below(random, reader.position - earliest);
                need(awqe_session_truncate(reader.session.get(), uint32_t(reader.position), &error),
                     error);
            }
        }
    }
}

}  // namespace

TEST(together_as_alone) {
    const OwnedModel model = open_model(kTiny);
    for (const KernelTable* table : runnable_tables()) {
        for (const uint32_t threads : {1u, 2u, 3u, 4u, 7u}) {
            for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
                check_together(model, table->name, threads, kv_type, threads, 6);
            }
        }
    }
}

TEST(many_orders_of_joining_and_leaving) {
    const OwnedModel model = open_model(kTiny);
    for (uint64_t seed = 100; seed < 106; ++seed) {
        check_together(model, "", 2, seed % 2 == 0 ? AWQE_KV_F16 : AWQE_KV_INT8, seed, 40);
    }
}

// Sessions of one model open, read, decode, go back and close in every thread while the others do
// the same. What is expected is computed before, for the threads to read alone.
TEST(joining_and_leaving_in_several_threads) {
    const OwnedModel model = open_model(kTiny);
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        all_alone(kv_type);
        all_hidden(kv_type);
    }
    std::vector<std::string> faults(4);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < faults.size(); ++i) {
        threads.emplace_back([&model, &fault = faults[i], i] {
            try {
                check_together(model, "", static_cast<uint32_t>(i % 3 + 1),
                               i % 2 == 0 ? AWQE_KV_F16 : AWQE_KV_INT8, 200 + i, 15);
            } catch (const std::exception& error) {
                fault = error.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& fault : faults) CHECK_EQUAL(fault, std::string());
}

TEST(every_number_of_rows) {
    // Rows that decode, from one to more than a block.
    const OwnedModel model = open_model(kTiny);
    for (const size_t count : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 16u, 17u, 33u, 130u}) {
        std::vector<Reader> readers(count);
        std::vector<awqe_batch_input> inputs;
        for (size_t i = 0; i < count; ++i) {
            readers[i].session = open_session(model, "", 2, AWQE_KV_F16);
            readers[i].text = i % kSessions;
        }
        for (const size_t tokens : {1u, 1u, 2u}) {
            inputs.clear();
            for (Reader& reader : readers) {
                reader.count = tokens;
                inputs.push_back(input_of(reader));
            }
            awqe_error error;
            need(awqe_batch_evaluate(inputs.data(), count, nullptr, nullptr, &error), error);
            for (Reader& reader : readers) {
                check_rows(reader, AWQE_KV_F16, std::to_string(count) + " rows");
                reader.position += reader.count;
            }
        }
    }
}

TEST(batches_in_several_threads_share_one_model) {
    OwnedModel model = open_model(kTiny);
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    all_alone(AWQE_KV_F16);
    std::vector<std::vector<Reader>> all(4);
    for (size_t i = 0; i < all.size(); ++i) {
        all[i].resize(i + 1);
        for (size_t j = 0; j < all[i].size(); ++j) {
            all[i][j].session =
                open_session(model, "", static_cast<uint32_t>(i % 3 + 1), AWQE_KV_F16);
            all[i][j].text = (i + 2 * j) % kSessions;
        }
    }
    for (auto& readers : all) {
        threads.emplace_back([&readers, &wrong] {
            try {
                for (const size_t count : {60u, 1u, 1u, 70u, 1u}) {
                    std::vector<awqe_batch_input> inputs;
                    for (Reader& reader : readers) {
                        reader.count = count;
                        inputs.push_back(input_of(reader));
                    }
                    awqe_error error;
                    need(
                        awqe_batch_evaluate(inputs.data(), inputs.size(), nullptr, nullptr, &error),
                        error);
                    for (Reader& reader : readers) {
                        check_rows(reader, AWQE_KV_F16, "in a thread");
                        reader.position += count;
                    }
                }
            } catch (const std::exception&) {
                ++wrong;
            }
        });
    }
    model.reset();  // whose sessions go on
    for (std::thread& thread : threads) thread.join();
    CHECK_EQUAL(wrong.load(), 0);
}

TEST(embeddings_of_tokens_are_the_tokens) {
    const OwnedModel model = open_model(kTiny);
    const Model weights(kTiny);
    for (const size_t count : {1u, 2u, 150u}) {
        const std::vector<uint32_t> tokens = tokens_of(2, 0, count);
        std::vector<float> embeddings(count * kHidden);
        for (size_t i = 0; i < count; ++i) {
            reference_table().embedding(&weights.embedding(), tokens[i],
                                        embeddings.data() + i * kHidden);
        }
        const OwnedSession session = open_session(model, "", 2, AWQE_KV_F16);
        std::vector<float> logits(count * kVocabulary);
        awqe_error error;
        need(awqe_session_evaluate_embeddings(session.get(), embeddings.data(), count,
                                              AWQE_LOGITS_ALL, logits.data(), nullptr, nullptr,
                                              &error),
             error);
        const std::vector<float>& expected = all_alone(AWQE_KV_F16)[2];
        CHECK(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)) == 0);
        // They are no tokens: what the context holds says so, and nothing is reusable.
        std::vector<uint32_t> context(count);
        need(awqe_session_tokens(session.get(), context.data(), count, &error), error);
        for (const uint32_t token : context) CHECK_EQUAL(token, UINT32_MAX);
        uint32_t reusable = 7;
        need(awqe_session_reusable(session.get(), context.data(), count, &reusable, &error), error);
        CHECK_EQUAL(reusable, 0u);
        // A penalty on recent tokens finds none.
        awqe_sampling sampling = {};
        sampling.struct_size = sizeof(sampling);
        sampling.top_p = 1;
        sampling.repetition_penalty = 2;
        awqe_sampler* sampler = nullptr;
        need(awqe_sampler_open(&sampling, &sampler, &error), error);
        uint32_t token = 0;
        need(awqe_session_sample(session.get(), sampler, &token, &error), error);
        awqe_sampler_close(sampler);
        const float* const last = expected.data() + (count - 1) * kVocabulary;
        for (size_t i = 0; i < kVocabulary; ++i) CHECK(last[i] <= last[token]);
    }
    const OwnedSession session = open_session(model, "", 1, AWQE_KV_F16);
    std::vector<float> embeddings(3 * kHidden, 0.5f);
    embeddings[2 * kHidden + 5] = std::strtof("nan", nullptr);
    awqe_error error;
    CHECK_EQUAL(
        awqe_session_evaluate_embeddings(session.get(), embeddings.data(), 3, AWQE_LOGITS_LAST,
                                         nullptr, nullptr, nullptr, &error),
        AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(std::string(error.message), "embedding 2 holds a number that is not finite, at 5");
    CHECK_EQUAL(awqe_session_position(session.get()), 0u);
}

TEST(what_a_batch_refuses) {
    const OwnedModel model = open_model(kTiny), other = open_model(kTiny);
    std::vector<Reader> readers(2);
    for (Reader& reader : readers) {
        reader.session = open_session(model, "", 1, AWQE_KV_F16);
        reader.count = 5;
    }
    awqe_error error;
    const auto refuse = [&](std::vector<awqe_batch_input> inputs, awqe_status status,
                            const std::string& sentence) {
        CHECK_EQUAL(awqe_batch_evaluate(inputs.data(), inputs.size(), nullptr, nullptr, &error),
                    status);
        if (std::string(error.message).find(sentence) == std::string::npos) {
            fail(__FILE__, __LINE__, std::string(error.message) + " lacks " + sentence);
        }
        for (const Reader& reader : readers) {
            CHECK_EQUAL(awqe_session_position(reader.session.get()), 0u);
        }
    };
    const awqe_batch_input sound = input_of(readers[0]);
    awqe_batch_input input = input_of(readers[1]);
    CHECK_EQUAL(awqe_batch_evaluate(&sound, 0, nullptr, nullptr, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(awqe_batch_evaluate(nullptr, 1, nullptr, nullptr, &error), AWQE_INVALID_ARGUMENT);
    refuse({sound, sound}, AWQE_INVALID_ARGUMENT, "inputs[1]: this session is in use");
    input.struct_size = 8;
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "inputs[1]: input.struct_size is 8");
    input = input_of(readers[1]);
    input.session = nullptr;
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "inputs[1]: session is NULL");
    input = input_of(readers[1]);
    input.count = SIZE_MAX;
    refuse({sound, input}, AWQE_CONTEXT_FULL, "inputs[1]: the context holds 0 of 320 tokens");
    input = input_of(readers[1]);
    input.which = 9;
    refuse({input, sound}, AWQE_INVALID_ARGUMENT, "inputs[0]: which is 9");
    input = input_of(readers[1]);
    input.tokens = nullptr;
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "inputs[1]: tokens is NULL, and so is");
    input = input_of(readers[1]);
    input.embeddings = readers[1].logits.data();
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "inputs[1]: there are tokens and embeddings");
    input = input_of(readers[1]);
    const OwnedSession foreign = open_session(other, "", 1, AWQE_KV_F16);
    input.session = foreign.get();
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "inputs[1]: its session has another model");
    const OwnedSession slow = open_session(model, "reference", 1, AWQE_KV_F16);
    input.session = slow.get();
    refuse({sound, input}, AWQE_INVALID_ARGUMENT, "or other kernels");
    // None of that has left a session in use.
    for (Reader& reader : readers) {
        reader.session.reset();
        reader.session = open_session(model, "", 1, AWQE_KV_F16);
    }
    const std::vector<awqe_batch_input> both = {input_of(readers[0]), input_of(readers[1])};
    need(awqe_batch_evaluate(both.data(), 2, nullptr, nullptr, &error), error);
}

TEST(a_cancelled_batch_keeps_what_it_has_read) {
    const OwnedModel model = open_model(kTiny);
    std::vector<Reader> readers(3);
    const size_t counts[] = {1, 200, 100};
    std::vector<awqe_batch_input> inputs;
    for (size_t i = 0; i < 3; ++i) {
        readers[i].session = open_session(model, "", 2, AWQE_KV_F16);
        readers[i].text = i;
        readers[i].count = counts[i];
        inputs.push_back(input_of(readers[i]));
    }
    awqe_error error;
    std::vector<size_t> told;
    const awqe_progress stop_at_second = [](void* user, size_t done, size_t total) {
        auto* const all = static_cast<std::vector<size_t>*>(user);
        all->push_back(done);
        return total == 301 && all->size() < 2;
    };
    CHECK_EQUAL(awqe_batch_evaluate(inputs.data(), 3, stop_at_second, &told, &error),
                AWQE_CANCELLED);
    CHECK_EQUAL(std::string(error.message), "cancelled after 256 of 301 tokens");
    CHECK(told == (std::vector<size_t>{128, 256}));
    const size_t read[] = {1, 200, 55};
    inputs.clear();
    for (size_t i = 0; i < 3; ++i) {
        CHECK_EQUAL(awqe_session_position(readers[i].session.get()), uint32_t(read[i]));
        readers[i].position = read[i];
        readers[i].count = 2;
        inputs.push_back(input_of(readers[i]));
    }
    need(awqe_batch_evaluate(inputs.data(), 3, nullptr, nullptr, &error), error);
    for (const Reader& reader : readers) check_rows(reader, AWQE_KV_F16, "after a cancelled batch");
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
