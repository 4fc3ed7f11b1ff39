// The GPU against the CPU, by ==: whole models through the C API, token by token, in blocks of
// every kind of kernel, several sequences together, both caches, going back, embeddings; for
// model files and for every form of a decoder. Says so and passes where there is no GPU. What the
// GPU has no kernels for it refuses. Arguments: model files; without any, those of tests/data.

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/random_model.h"
#include "tests/native/support/random_vision.h"

namespace awqe::test {
namespace {

std::vector<std::string> model_files;

// Tokens of a text at most; the emulated GPU takes its time.
#if defined(AWQE_TEST_TOKENS)
constexpr size_t kMostTokens = AWQE_TEST_TOKENS;
#else
constexpr size_t kMostTokens = 640;
#endif

OwnedSession open_session(const OwnedModel& model, awqe_device device, awqe_kv_type type,
                          uint32_t gpu_layers = 0,
                          awqe_attention attention = AWQE_ATTENTION_EXACT) {
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.device = device;
    options.kv_type = type;
    options.gpu_layers = gpu_layers;
    options.attention = attention;
    awqe_session* session = nullptr;
    awqe_error error = {};
    need(awqe_session_open(model.get(), &options, &session, &error), error);
    return OwnedSession(session);
}

bool gpu_is_there() {
    awqe_gpu gpu = {};
    gpu.struct_size = sizeof(gpu);
    awqe_error error = {};
    if (awqe_gpu_get(&gpu, &error) == AWQE_OK) return true;
    std::printf("skipped: %s\n", error.message);
    return false;
}

awqe_model_info info_of(const OwnedModel& model) {
    awqe_model_info info = {};
    info.struct_size = sizeof(info);
    awqe_error error = {};
    need(awqe_model_info_get(model.get(), &info, &error), error);
    return info;
}

std::vector<uint32_t> tokens_for(const awqe_model_info& info, size_t count, uint32_t seed) {
    std::vector<uint32_t> tokens(count);
    for (size_t i = 0; i < count; ++i) {
        tokens[i] = static_cast<uint32_t>((i + seed) * 2654435761u >> 7) % info.vocabulary_size;
    }
    return tokens;
}

std::vector<float> read(const OwnedSession& session, const awqe_model_info& info,
                        const uint32_t* tokens, size_t count) {
    std::vector<float> logits(count * info.vocabulary_size);
    awqe_error error = {};
    need(awqe_session_evaluate(session.get(), tokens, count, AWQE_LOGITS_ALL, logits.data(),
                               nullptr, nullptr, &error),
         error);
    return logits;
}

void check_same(const float* is, const float* expected, size_t count, const std::string& where) {
    if (std::memcmp(is, expected, count * sizeof(float)) == 0) return;
    size_t differing = 0;
    for (size_t i = 0; i < count; ++i) differing += std::memcmp(is + i, expected + i, 4) != 0;
    fail(__FILE__, __LINE__,
         where + ": " + std::to_string(differing) + " of " + std::to_string(count) +
             " logits differ");
}

constexpr awqe_kv_type kTypes[] = {AWQE_KV_F16, AWQE_KV_INT8};

// Calls check(model, name) for every file and every form of a decoder.
template <class Check>
void for_every_model(const Check& check) {
    for (const std::string& path : model_files) check(open_model(path), path);
    for (const ModelForm& form : model_forms()) {
        check(open_bytes(random_model(form).build()), std::string(form.name));
    }
}

TEST(every_way_of_reading_gives_the_logits_of_the_cpu) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const size_t length = std::min<size_t>(info.context_length, kMostTokens);
        const std::vector<uint32_t> tokens = tokens_for(info, length, 1);
        for (const awqe_kv_type type : kTypes) {
            const OwnedSession cpu = open_session(model, AWQE_DEVICE_CPU, type);
            const OwnedSession gpu = open_session(model, AWQE_DEVICE_CUDA, type);
            CHECK_EQUAL(std::string(awqe_session_kernels(gpu.get())), std::string("cuda"));
            const std::vector<float> expected = read(cpu, info, tokens.data(), length);
            size_t at = 0;
            const auto part = [&](size_t count) {
                count = std::min(count, length - at);
                if (count == 0) return;
                const std::vector<float> is = read(gpu, info, tokens.data() + at, count);
                check_same(
                    is.data(), expected.data() + at * info.vocabulary_size, is.size(),
                    name + ", " + std::to_string(count) + " tokens at " + std::to_string(at));
                at += count;
            };
            // One token, few rows, more than few, blocks of tiles, all the rest; then tokens again.
            // From the first third on once more, in one piece.
            const size_t most = length < 150 ? 5 : length < 400 ? 10 : 19;
            for (size_t i = 0; i < (most < 19 ? 3 : 12); ++i) part(1);
            for (size_t count = 2; count <= most; ++count) part(count);
            for (const size_t count : {17, 33, 64, 129, 200}) {
                if (at + count + 4 < length) part(count);
            }
            while (at < length) part(1);

            awqe_error error = {};
            need(awqe_session_truncate(gpu.get(), static_cast<uint32_t>(length / 3), &error),
                 error);
            at = length / 3;
            part(length);
        }
    });
}

TEST(sequences_together_give_what_each_gives_alone) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const size_t length = std::min<size_t>(info.context_length, kMostTokens < 640 ? 24 : 200);
        std::vector<OwnedSession> sessions;
        std::vector<std::vector<uint32_t>> texts;
        std::vector<std::vector<float>> expected;
        for (uint32_t i = 0; i < 5; ++i) {
            const awqe_kv_type type = i == 4 ? AWQE_KV_INT8 : AWQE_KV_F16;
            texts.push_back(tokens_for(info, length, 100 * i));
            sessions.push_back(open_session(model, AWQE_DEVICE_CUDA, type));
            expected.push_back(read(open_session(model, AWQE_DEVICE_CPU, type), info,
                                    texts.back().data(), length));
        }
        // Sequence i takes i + 1 tokens at a time, one of them a prompt of 40: all kinds of rows in
        // one pass. Every third time each takes one, as sequences do that decode together.
        std::vector<size_t> at(5, 0);
        size_t pass = 0;
        for (bool left = true; left; ++pass) {
            left = false;
            std::vector<awqe_batch_input> inputs;
            std::vector<std::vector<float>> logits(5);
            for (uint32_t i = 0; i < 5; ++i) {
                const size_t most = pass % 3 == 0 ? 1 : i == 3 ? 40 : i + 1;
                const size_t count = std::min(most, length - at[i]);
                if (count == 0) continue;
                logits[i].resize(count * info.vocabulary_size);
                awqe_batch_input input = {};
                input.struct_size = sizeof(input);
                input.which = AWQE_LOGITS_ALL;
                input.session = sessions[i].get();
                input.tokens = texts[i].data() + at[i];
                input.count = count;
                input.logits = logits[i].data();
                inputs.push_back(input);
                left = true;
            }
            if (!left) break;
            awqe_error error = {};
            need(awqe_batch_evaluate(inputs.data(), inputs.size(), nullptr, nullptr, &error),
                 error);
            for (uint32_t i = 0; i < 5; ++i) {
                check_same(logits[i].data(), expected[i].data() + at[i] * info.vocabulary_size,
                           logits[i].size(), name + ", sequence " + std::to_string(i));
                at[i] += logits[i].size() / info.vocabulary_size;
            }
        }
    });
}

OwnedSampler greedy_sampler(float repetition_penalty) {
    awqe_sampling sampling = {};
    sampling.struct_size = sizeof(sampling);
    sampling.top_p = 1;
    sampling.repetition_penalty = repetition_penalty;
    awqe_sampler* sampler = nullptr;
    awqe_error error = {};
    need(awqe_sampler_open(&sampling, &sampler, &error), error);
    return OwnedSampler(sampler);
}

// What decodes greedily leaves its logits on the GPU: the tokens are the CPU's, and so are the
// logits of whoever asks for them in between, for a sampler that needs them, saved or copied, and
// behind tokens that are not the likeliest, after going back, and of several sequences together.
TEST(greedy_texts_are_those_of_the_cpu_and_so_are_logits_that_are_asked_for) {
    if (!gpu_is_there()) return;
    const OwnedSampler greedy = greedy_sampler(1);
    const OwnedSampler penalised = greedy_sampler(1.3f);
    for_every_model([&](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const uint32_t steps = std::min(info.context_length - 8, kMostTokens < 640 ? 24u : 150u);
        for (const uint32_t gpu_layers : {0u, 1u}) {
            if (gpu_layers == info.layers) continue;
            constexpr size_t kSequences = 3;
            std::vector<OwnedSession> cpu, gpu;
            std::vector<awqe_batch_input> inputs(kSequences);
            uint32_t tokens[kSequences];
            awqe_error error = {};
            for (size_t i = 0; i < kSequences; ++i) {
                cpu.push_back(open_session(model, AWQE_DEVICE_CPU, AWQE_KV_F16));
                gpu.push_back(open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16, gpu_layers));
                const std::vector<uint32_t> prompt = tokens_for(info, 3, static_cast<uint32_t>(i));
                for (const OwnedSession* session : {&cpu[i], &gpu[i]}) {
                    need(awqe_session_evaluate(session->get(), prompt.data(), prompt.size() - i,
                                               AWQE_LOGITS_LAST, nullptr, nullptr, nullptr, &error),
                         error);
                }
            }
            std::vector<float> is(info.vocabulary_size), expected(info.vocabulary_size);
            for (uint32_t step = 0; step < steps; ++step) {
                // One sequence for a while, then all of them, then one again.
                const size_t count = step / 8 % 2 == 0 ? 1 : kSequences;
                const std::string where = name + ", step " + std::to_string(step);
                for (size_t i = 0; i < count; ++i) {
                    const bool asks = step % 5 == 4 && i == 0;
                    awqe_sampler* const sampler = (step % 13 == 7 ? penalised : greedy).get();
                    uint32_t other = 0;
                    need(awqe_session_sample(cpu[i].get(), sampler, &tokens[i], &error), error);
                    need(awqe_session_sample(gpu[i].get(), sampler, &other, &error), error);
                    if (other != tokens[i]) fail(__FILE__, __LINE__, where + ": another token");
                    if (asks) {
                        need(awqe_session_logits(cpu[i].get(), expected.data(), expected.size(),
                                                 &error),
                             error);
                        need(awqe_session_logits(gpu[i].get(), is.data(), is.size(), &error),
                             error);
                        check_same(is.data(), expected.data(), is.size(), where);
                    }
                    // Not always what was drawn, and not always at the end.
                    if (step % 17 == 16) tokens[i] = (tokens[i] + 1) % info.vocabulary_size;
                    const uint32_t back = awqe_session_position(cpu[i].get()) - 1;
                    for (const OwnedSession* session : {&cpu[i], &gpu[i]}) {
                        if (step % 11 != 10 || back < awqe_session_earliest(cpu[i].get())) continue;
                        need(awqe_session_truncate(session->get(), back, &error), error);
                    }
                }
                for (const std::vector<OwnedSession>* sessions : {&cpu, &gpu}) {
                    for (size_t i = 0; i < count; ++i) {
                        inputs[i] = {};
                        inputs[i].struct_size = sizeof(inputs[i]);
                        inputs[i].which = AWQE_LOGITS_LAST;
                        inputs[i].session = (*sessions)[i].get();
                        inputs[i].tokens = &tokens[i];
                        inputs[i].count = 1;
                    }
                    need(awqe_batch_evaluate(inputs.data(), count, nullptr, nullptr, &error),
                         error);
                }
            }
            // Saved with its logits, which another session then draws from.
            uint64_t size = 0;
            const uint32_t end = awqe_session_position(gpu[0].get());
            need(awqe_session_saved_bytes(gpu[0].get(), 0, end, &size, &error), error);
            std::vector<uint8_t> saved(size);
            need(awqe_session_save(gpu[0].get(), 0, end, saved.data(), size, &error), error);
            need(awqe_session_restore(gpu[1].get(), saved.data(), size, &error), error);
            need(awqe_session_logits(cpu[0].get(), expected.data(), expected.size(), &error),
                 error);
            need(awqe_session_logits(gpu[1].get(), is.data(), is.size(), &error), error);
            check_same(is.data(), expected.data(), is.size(), name + ", saved");
        }
    });
}

TEST(embeddings_give_the_logits_of_the_cpu) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        constexpr size_t kCount = 5;
        std::vector<float> embeddings(kCount * info.hidden_size);
        for (size_t i = 0; i < embeddings.size(); ++i) {
            embeddings[i] =
                static_cast<float>(static_cast<int>(i * 2654435761u >> 20) - 2048) / 4e4f;
        }
        std::vector<float> is[2];
        for (const awqe_device device : {AWQE_DEVICE_CPU, AWQE_DEVICE_CUDA}) {
            const OwnedSession session = open_session(model, device, AWQE_KV_F16);
            std::vector<float>& logits = is[device == AWQE_DEVICE_CPU ? 0 : 1];
            logits.resize(kCount * info.vocabulary_size);
            awqe_error error = {};
            need(awqe_session_evaluate_embeddings(session.get(), embeddings.data(), kCount,
                                                  AWQE_LOGITS_ALL, logits.data(), nullptr, nullptr,
                                                  &error),
                 error);
        }
        check_same(is[1].data(), is[0].data(), is[0].size(), name);
    });
}

// float [tokens, hidden_size] of what the head reads, in parts; every other part with logits.
std::vector<float> read_hidden(const OwnedModel& model, const awqe_model_info& info,
                               awqe_device device, const std::vector<uint32_t>& tokens) {
    const OwnedSession session = open_session(model, device, AWQE_KV_F16);
    std::vector<float> hidden(tokens.size() * info.hidden_size);
    std::vector<float> logits(tokens.size() * info.vocabulary_size);
    bool with_logits = false;
    for (size_t at = 0, part = 1; at < tokens.size(); part *= 3, with_logits = !with_logits) {
        awqe_batch_input input = {};
        input.struct_size = sizeof(input);
        input.session = session.get();
        input.which = with_logits ? AWQE_LOGITS_ALL : AWQE_LOGITS_NONE;
        input.tokens = tokens.data() + at;
        input.count = std::min(part, tokens.size() - at);
        if (with_logits) input.logits = logits.data();
        input.hidden = hidden.data() + at * info.hidden_size;
        awqe_error error = {};
        need(awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error), error);
        at += input.count;
    }
    return hidden;
}

TEST(hidden_states_are_those_of_the_cpu) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const std::vector<uint32_t> tokens =
            tokens_for(info, std::min<size_t>(info.context_length, 31), 7);
        const std::vector<float> expected = read_hidden(model, info, AWQE_DEVICE_CPU, tokens);
        const std::vector<float> is = read_hidden(model, info, AWQE_DEVICE_CUDA, tokens);
        check_same(is.data(), expected.data(), is.size(), name + ", hidden states");
    });
}

TEST(layers_divided_with_the_cpu_give_its_logits) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const size_t length = std::min<size_t>(info.context_length, 40);
        const std::vector<uint32_t> tokens = tokens_for(info, length, 3);
        for (uint32_t layers = 1; layers < info.layers; layers = 2 * layers + 1) {
            const awqe_kv_type type = kTypes[layers / 2 % 2];
            const std::vector<float> expected =
                read(open_session(model, AWQE_DEVICE_CPU, type), info, tokens.data(), length);
            OwnedSession session = open_session(model, AWQE_DEVICE_CUDA, type, layers);
            CHECK_EQUAL(std::string(awqe_session_kernels(session.get()))
                            .find(std::to_string(layers) + " of " + std::to_string(info.layers) +
                                  " layers"),
                        size_t{0});
            const std::string where = name + ", " + std::to_string(layers) + " layers";
            size_t at = 0;
            for (const size_t count : {size_t{1}, size_t{1}, size_t{1}, size_t{2}, size_t{5},
                                       std::min<size_t>(length, 30) - 10}) {
                const std::vector<float> is = read(session, info, tokens.data() + at, count);
                check_same(is.data(), expected.data() + at * info.vocabulary_size, is.size(),
                           where + ", " + std::to_string(count) + " at " + std::to_string(at));
                at += count;
            }
            // What is saved here another division takes up, and the CPU alone.
            awqe_error error = {};
            uint64_t size = 0;
            const uint32_t end = static_cast<uint32_t>(at);
            need(awqe_session_saved_bytes(session.get(), 0, end, &size, &error), error);
            std::vector<uint8_t> saved(size);
            need(awqe_session_save(session.get(), 0, end, saved.data(), size, &error), error);
            const uint32_t other = info.layers - layers;
            const OwnedSession next[] = {open_session(model, AWQE_DEVICE_CUDA, type, other),
                                         open_session(model, AWQE_DEVICE_CPU, type)};
            for (const OwnedSession& taker : next) {
                need(awqe_session_restore(taker.get(), saved.data(), size, &error), error);
                const std::vector<float> is = read(taker, info, tokens.data() + at, 1);
                check_same(is.data(), expected.data() + at * info.vocabulary_size, is.size(),
                           where + ", taken up");
            }
        }
    });
}

// Halves keep 11 bits: what a layer takes up of attention is off by some thousandths.
TEST(attention_on_tensor_cores_is_close_and_what_decodes_behind_it_too) {
    if (!gpu_is_there()) return;
    for_every_model([](const OwnedModel& model, const std::string& name) {
        const awqe_model_info info = info_of(model);
        const size_t length = std::min<size_t>(info.context_length, kMostTokens);
        const std::vector<uint32_t> tokens = tokens_for(info, length, 3);
        for (const awqe_kv_type type : kTypes) {
            const OwnedSession cpu = open_session(model, AWQE_DEVICE_CPU, type);
            const OwnedSession gpu =
                open_session(model, AWQE_DEVICE_CUDA, type, 0, AWQE_ATTENTION_TENSOR);
            const std::vector<float> expected = read(cpu, info, tokens.data(), length);
            double square = 0, difference = 0;
            size_t at = 0;
            // A prompt, one that goes on behind it, rows that are attended exactly.
            for (const size_t part : {size_t{37}, length - 39, size_t{1}, size_t{1}}) {
                const std::vector<float> is = read(gpu, info, tokens.data() + at, part);
                for (size_t i = 0; i < is.size(); ++i) {
                    const double right = expected[at * info.vocabulary_size + i];
                    square += right * right;
                    difference += (is[i] - right) * (is[i] - right);
                }
                at += part;
            }
            if (!(difference < 0.03 * 0.03 * square)) {
                fail(__FILE__, __LINE__,
                     name + ": off by " + std::to_string(std::sqrt(difference / square)));
            }
        }
    });
}

TEST(a_context_goes_only_to_a_session_that_attends_alike) {
    if (!gpu_is_there()) return;
    const OwnedModel model = open_model(model_files.front());
    const awqe_model_info info = info_of(model);
    const std::vector<uint32_t> tokens = tokens_for(info, 20, 3);
    const OwnedSession tensor =
        open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16, 0, AWQE_ATTENTION_TENSOR);
    read(tensor, info, tokens.data(), tokens.size());
    uint64_t size = 0;
    awqe_error error = {};
    need(awqe_session_saved_bytes(tensor.get(), 0, 20, &size, &error), error);
    std::vector<uint8_t> saved(size);
    need(awqe_session_save(tensor.get(), 0, 20, saved.data(), size, &error), error);
    const OwnedSession exact = open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16);
    CHECK_EQUAL(awqe_session_restore(exact.get(), saved.data(), size, &error),
                AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(
        std::string(error.message),
        std::string("the context was saved with tensor attention, this session's is exact"));
    const OwnedSession alike =
        open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16, 0, AWQE_ATTENTION_TENSOR);
    need(awqe_session_restore(alike.get(), saved.data(), size, &error), error);
    const std::vector<float> expected = read(tensor, info, tokens.data(), 1);
    const std::vector<float> is = read(alike, info, tokens.data(), 1);
    check_same(is.data(), expected.data(), is.size(), "behind a context that was taken up");
}

// Logits [all rows, vocabulary] of text, a picture of 3 x 4 rows, and text again.
std::vector<float> read_with_picture(const OwnedSession& session, const awqe_model_info& info,
                                     const std::vector<float>& rows) {
    constexpr size_t kRows = 12;
    const std::vector<uint32_t> tokens = tokens_for(info, 5, 1);
    std::vector<float> all = read(session, info, tokens.data(), 2);
    awqe_batch_input input = {};
    input.struct_size = sizeof(input);
    input.session = session.get();
    input.which = AWQE_LOGITS_ALL;
    input.embeddings = rows.data();
    input.count = kRows;
    input.columns = 4;
    std::vector<float> logits(kRows * info.vocabulary_size);
    input.logits = logits.data();
    awqe_error error = {};
    need(awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error), error);
    all.insert(all.end(), logits.begin(), logits.end());
    for (const uint32_t token : tokens) {
        const std::vector<float> one = read(session, info, &token, 1);
        all.insert(all.end(), one.begin(), one.end());
    }
    return all;
}

TEST(rows_of_pictures_turn_by_their_place_and_are_taken_up_again) {
    if (!gpu_is_there()) return;
    size_t turned = 0;
    size_t tapped = 0;
    for (const VisionForm& form : vision_forms()) {
        if (!form.rotary) continue;
        ++turned;
        const OwnedModel model = open_bytes(random_vision_model(form).build());
        const awqe_model_info info = info_of(model);
        awqe_vision_info vision = {};
        vision.struct_size = sizeof(vision);
        awqe_error error = {};
        need(awqe_vision_info_get(model.get(), &vision, &error), error);
        std::vector<float> rows(12 * size_t{vision.embedding_size});
        for (size_t i = 0; i < rows.size(); ++i) {
            rows[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 20) - 2048) / 4e4f;
        }
        const std::vector<float> expected =
            read_with_picture(open_session(model, AWQE_DEVICE_CPU, AWQE_KV_F16), info, rows);
        const std::vector<float> is =
            read_with_picture(open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16), info, rows);
        check_same(is.data(), expected.data(), expected.size(), form.name);
        // Layers that take up a picture again are not divided.
        if (vision.embedding_size > info.hidden_size) {
            ++tapped;
            awqe_session_options options = {};
            options.struct_size = sizeof(options);
            options.device = AWQE_DEVICE_CUDA;
            options.gpu_layers = info.layers - 1;
            awqe_session* opened = nullptr;
            CHECK_EQUAL(awqe_session_open(model.get(), &options, &opened, &error),
                        AWQE_UNSUPPORTED);
            CHECK(std::string(error.message).find("take up a picture again and stay together") !=
                  std::string::npos);
            continue;
        }
        const std::vector<float> divided =
            read_with_picture(open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16, 1), info, rows);
        check_same(divided.data(), expected.data(), expected.size(),
                   std::string(form.name) + ", divided");
    }
    CHECK(turned > 1 && tapped > 0);
}

TEST(gated_blocks_are_refused_and_auto_takes_the_cpu) {
    if (!gpu_is_there()) return;
    VisionForm form;
    form.blocks = {0, 1};
    form.class_token = true;
    form.image_size = 48;
    const OwnedModel model = open_bytes(random_vision_model(form).build());
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.device = AWQE_DEVICE_CUDA;
    awqe_session* opened = nullptr;
    awqe_error error = {};
    for (const uint32_t layers : {0u, 1u}) {
        options.gpu_layers = layers;
        CHECK_EQUAL(awqe_session_open(model.get(), &options, &opened, &error), AWQE_UNSUPPORTED);
        CHECK(opened == nullptr);
        CHECK(std::string(error.message).find("the GPU has no ") == 0);
    }
    const OwnedSession session = open_session(model, AWQE_DEVICE_AUTO, AWQE_KV_F16);
    CHECK(std::strcmp(awqe_session_kernels(session.get()), "cuda") != 0);
    const awqe_model_info info = info_of(model);
    const std::vector<uint32_t> tokens = tokens_for(info, 3, 1);
    read(session, info, tokens.data(), tokens.size());
}

TEST(pictures_that_are_seen_in_both_directions_are_refused_and_text_is_read) {
    if (!gpu_is_there()) return;
    VisionForm form;
    form.image_size = 48;
    form.bidirectional = true;
    const OwnedModel model = open_bytes(random_vision_model(form).build());
    const awqe_model_info info = info_of(model);
    const OwnedSession session = open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16);
    awqe_vision_info vision = {};
    vision.struct_size = sizeof(vision);
    awqe_error error = {};
    need(awqe_vision_info_get(model.get(), &vision, &error), error);
    const std::vector<float> rows(size_t{vision.tokens} * vision.embedding_size);
    CHECK_EQUAL(
        awqe_session_evaluate_embeddings(session.get(), rows.data(), vision.tokens,
                                         AWQE_LOGITS_LAST, nullptr, nullptr, nullptr, &error),
        AWQE_UNSUPPORTED);
    CHECK(std::string(error.message).find("use the CPU for its pictures") != std::string::npos);
    const std::vector<uint32_t> tokens = tokens_for(info, 3, 1);
    const OwnedSession cpu = open_session(model, AWQE_DEVICE_CPU, AWQE_KV_F16);
    const std::vector<float> logits = read(session, info, tokens.data(), tokens.size());
    const std::vector<float> expected = read(cpu, info, tokens.data(), tokens.size());
    check_same(logits.data(), expected.data(), expected.size(), "text");
}

TEST(opening_and_closing_gives_all_memory_back) {
    if (!gpu_is_there()) return;
    uint64_t first = 0;
    for (int i = 0; i < (kMostTokens < 640 ? 10 : 60); ++i) {
        const OwnedModel model = open_model(model_files.front());
        const awqe_model_info info = info_of(model);
        const OwnedSession session = open_session(model, AWQE_DEVICE_CUDA, AWQE_KV_F16);
        const std::vector<uint32_t> tokens = tokens_for(info, 3, 1);
        for (const uint32_t token : tokens) read(session, info, &token, 1);
        awqe_gpu gpu = {};
        gpu.struct_size = sizeof(gpu);
        awqe_error error = {};
        need(awqe_gpu_get(&gpu, &error), error);
        if (i == 5) first = gpu.free_bytes;
        if (i > 5) CHECK(gpu.free_bytes + (uint64_t{4} << 20) >= first);
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) {
    awqe::test::model_files.assign(argv + 1, argv + argc);
    if (awqe::test::model_files.empty()) {
        awqe::test::model_files.push_back(AWQE_TEST_DATA "/tiny.awq.gguf");
        if (awqe::test::kMostTokens >= 640) {
            awqe::test::model_files.push_back(AWQE_TEST_DATA "/stories260k.awq.gguf");
        }
    }
    return awqe::test::run(1, argv);
}
