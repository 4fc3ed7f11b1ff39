// A saved context goes on to the same bits, in any session of the model, and every damaged byte of
// one is refused. On tests/data/tiny.awq.gguf, whose middle layer keeps a ring of a window of 37.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/random_model.h"

namespace awqe::test {
namespace {

constexpr size_t kVocabulary = 203;

using Logits = std::vector<float>;

awqe_model* tiny() {
    static const OwnedModel model = open_model(AWQE_TEST_DATA "/tiny.awq.gguf");
    return model.get();
}

OwnedSession open_session(awqe_kv_type kv_type, uint32_t context_length = 0) {
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.threads = options.prefill_threads = 2;
    options.kv_type = kv_type;
    options.context_length = context_length;
    awqe_session* session = nullptr;
    awqe_error error;
    need(awqe_session_open(tiny(), &options, &session, &error), error);
    return OwnedSession(session);
}

std::vector<uint32_t> text(size_t begin, size_t end) {
    std::vector<uint32_t> tokens;
    for (size_t i = begin; i < end; ++i)
        tokens.push_back(static_cast<uint32_t>((i * i + 9 * i) % 203));
    return tokens;
}

Logits read(const OwnedSession& session, size_t begin, size_t end) {
    const std::vector<uint32_t> tokens = text(begin, end);
    Logits logits(tokens.size() * kVocabulary);
    awqe_error error;
    need(awqe_session_evaluate(session.get(), tokens.data(), tokens.size(), AWQE_LOGITS_ALL,
                               logits.data(), nullptr, nullptr, &error),
         error);
    return logits;
}

Bytes save(const OwnedSession& session, uint32_t end, uint32_t begin = 0) {
    awqe_error error;
    uint64_t size = 0;
    need(awqe_session_saved_bytes(session.get(), begin, end, &size, &error), error);
    Bytes bytes(size);
    need(awqe_session_save(session.get(), begin, end, bytes.data(), bytes.size(), &error), error);
    return bytes;
}

awqe_status restore(const OwnedSession& session, const Bytes& bytes, awqe_error* error) {
    return awqe_session_restore(session.get(), bytes.data(), bytes.size(), error);
}

}  // namespace

TEST(a_restored_context_goes_on_to_the_same_bits) {
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        for (const size_t count : {1u, 36u, 37u, 38u, 150u, 300u}) {
            const OwnedSession original = open_session(kv_type);
            read(original, 0, count);
            const Bytes whole = save(original, static_cast<uint32_t>(count));
            const Logits expected = read(original, count, count + 20);
            // The prefix of a longer context is the same, but for the logits.
            const Bytes prefix = save(original, static_cast<uint32_t>(count));
            CHECK_EQUAL(whole.size(), prefix.size() + kVocabulary * sizeof(float));
            for (const uint32_t context_length :
                 {320u, 320u - 3, static_cast<uint32_t>(count) + 20}) {
                if (context_length < count + 20) continue;
                for (const Bytes& bytes : {whole, prefix}) {
                    const OwnedSession other = open_session(kv_type, context_length);
                    read(other, 5, 12);  // something else, which is replaced
                    awqe_error error;
                    need(restore(other, bytes, &error), error);
                    CHECK_EQUAL(awqe_session_position(other.get()), uint32_t(count));
                    std::vector<uint32_t> tokens(count);
                    need(awqe_session_tokens(other.get(), tokens.data(), count, &error), error);
                    CHECK(tokens == text(0, count));
                    CHECK(read(other, count, count + 20) == expected);
                    // A context that has lost what a window has passed goes back to 0 alone.
                    CHECK_EQUAL(awqe_session_earliest(other.get()),
                                count > 36 ? uint32_t(count) : 0u);
                    need(awqe_session_truncate(other.get(), 0, &error), error);
                    CHECK_EQUAL(awqe_session_earliest(other.get()), 0u);
                    read(other, 0, count);
                    CHECK(read(other, count, count + 20) == expected);
                }
            }
        }
    }
}

TEST(the_logits_of_a_whole_context_come_with_it) {
    const OwnedSession original = open_session(AWQE_KV_F16), other = open_session(AWQE_KV_F16);
    awqe_sampling sampling = {};
    sampling.struct_size = sizeof(sampling);
    sampling.top_p = sampling.repetition_penalty = 1;
    awqe_sampler* sampler = nullptr;
    awqe_error error;
    need(awqe_sampler_open(&sampling, &sampler, &error), error);
    read(original, 0, 50);
    uint32_t expected = 0, token = 0;
    need(awqe_session_sample(original.get(), sampler, &expected, &error), error);
    need(restore(other, save(original, 50), &error), error);
    need(awqe_session_sample(other.get(), sampler, &token, &error), error);
    CHECK_EQUAL(token, expected);
    uint32_t reusable = 0;
    const std::vector<uint32_t> tokens = text(0, 50);
    need(awqe_session_reusable(other.get(), tokens.data(), 50, &reusable, &error), error);
    CHECK_EQUAL(reusable, 50u);
    need(restore(other, save(original, 49), &error), error);
    CHECK_EQUAL(awqe_session_sample(other.get(), sampler, &token, &error), AWQE_INVALID_ARGUMENT);
    awqe_sampler_close(sampler);
}

TEST(parts_that_were_saved_follow_each_other_to_the_same_bits) {
    for (const awqe_kv_type kv_type : {AWQE_KV_F16, AWQE_KV_INT8}) {
        const OwnedSession original = open_session(kv_type);
        std::vector<Bytes> parts;
        uint32_t begin = 0;
        // Each is saved as soon as it is there: later the ring of the window has moved on.
        for (const uint32_t end : {1u, 20u, 36u, 40u, 128u, 256u, 300u}) {
            read(original, begin, end);
            parts.push_back(save(original, end, begin));
            begin = end;
        }
        CHECK(save(original, 300).size() > parts.back().size());
        const OwnedSession other = open_session(kv_type);
        read(other, 5, 12);
        awqe_error error;
        for (const Bytes& part : parts) need(restore(other, part, &error), error);
        CHECK_EQUAL(awqe_session_position(other.get()), 300u);
        CHECK_EQUAL(awqe_session_earliest(other.get()), 300u);
        CHECK(read(other, 300, 320) == read(original, 300, 320));
        // Any beginning of the chain is a context too.
        const OwnedSession half = open_session(kv_type), whole = open_session(kv_type);
        for (size_t i = 0; i < 4; ++i) need(restore(half, parts[i], &error), error);
        read(whole, 0, 40);
        CHECK(read(half, 40, 60) == read(whole, 40, 60));
        // Within the window nothing is forgotten, and one can go back.
        const OwnedSession early = open_session(kv_type), again = open_session(kv_type);
        for (size_t i = 0; i < 3; ++i) need(restore(early, parts[i], &error), error);
        CHECK_EQUAL(awqe_session_earliest(early.get()), 0u);
        need(awqe_session_truncate(early.get(), 7, &error), error);
        read(again, 0, 7);
        CHECK(read(early, 7, 30) == read(again, 7, 30));
    }
}

TEST(a_part_goes_behind_the_text_that_it_was_saved_behind) {
    const OwnedSession original = open_session(AWQE_KV_F16), other = open_session(AWQE_KV_F16);
    read(original, 0, 30);
    const Bytes part = save(original, 30, 20);
    awqe_error error;
    const auto refused = [&](uint32_t position) {
        CHECK_EQUAL(restore(other, part, &error), AWQE_INVALID_ARGUMENT);
        CHECK(std::strstr(error.message, "saved behind another text") != nullptr);
        CHECK_EQUAL(awqe_session_position(other.get()), position);
    };
    refused(0);
    read(other, 0, 19);
    refused(19);
    read(other, 18, 19);  // 20 tokens, of which the last is another
    refused(20);
    need(awqe_session_truncate(other.get(), 19, &error), error);
    read(other, 19, 20);
    need(restore(other, part, &error), error);
    CHECK(read(other, 30, 40) == read(original, 30, 40));
}

TEST(every_damaged_byte_is_refused_and_changes_nothing) {
    const OwnedSession original = open_session(AWQE_KV_INT8), other = open_session(AWQE_KV_INT8);
    read(original, 0, 4);
    read(other, 0, 30);
    const Bytes sound = save(original, 4);
    awqe_error error;
    const auto refused = [&](const Bytes& bytes) {
        const awqe_status status = restore(other, bytes, &error);
        CHECK(status == AWQE_FILE_INVALID || status == AWQE_UNSUPPORTED ||
              status == AWQE_INVALID_ARGUMENT || status == AWQE_CONTEXT_FULL);
        CHECK(std::strlen(error.message) > 10);
        CHECK_EQUAL(awqe_session_position(other.get()), 30u);
    };
    for (size_t i = 0; i < sound.size(); ++i) {
        for (const uint8_t flip : {0x01, 0x80, 0xFF}) {
            Bytes bytes = sound;
            bytes[i] ^= flip;
            refused(bytes);
        }
    }
    for (size_t size : {size_t{0}, size_t{7}, size_t{151}, size_t{152}, sound.size() - 1}) {
        refused(Bytes(sound.begin(), sound.begin() + static_cast<long>(size)));
    }
    Bytes longer = sound;
    longer.push_back(0);
    refused(longer);
    const OwnedSession expected = open_session(AWQE_KV_INT8);
    read(expected, 0, 30);
    CHECK(read(other, 30, 40) == read(expected, 30, 40));
}

// The same tensors, whose checksum is all that a file says of them.
TEST(models_that_choose_experts_otherwise_exchange_nothing) {
    std::vector<ModelForm> forms(5);
    for (ModelForm& form : forms) form.experts = 5;
    forms[1].experts_per_token = 3;
    forms[2].routing = "softmax_renormalised";
    forms[3].routing = forms[4].routing = "sparsemixer";
    forms[4].router_epsilon = 0.25f;
    const uint32_t tokens[] = {3, 1, 4, 1, 5};
    awqe_error error;
    std::vector<OwnedModel> models;
    std::vector<Bytes> contexts;
    for (const ModelForm& form : forms) {
        models.push_back(open_bytes(random_model(form).build()));
        const OwnedSession session = open_session(models.back(), "", 1, AWQE_KV_F16);
        need(awqe_session_evaluate(session.get(), tokens, std::size(tokens), AWQE_LOGITS_NONE,
                                   nullptr, nullptr, nullptr, &error),
             error);
        contexts.push_back(save(session, std::size(tokens)));
    }
    for (size_t i = 0; i < forms.size(); ++i) {
        for (size_t j = 0; j < forms.size(); ++j) {
            const OwnedSession session = open_session(models[i], "", 1, AWQE_KV_F16);
            CHECK_EQUAL(restore(session, contexts[j], &error),
                        i == j ? AWQE_OK : AWQE_INVALID_ARGUMENT);
        }
    }
}

TEST(what_does_not_fit_is_refused_in_words) {
    const OwnedSession original = open_session(AWQE_KV_F16);
    read(original, 0, 100);
    const Bytes bytes = save(original, 100);
    awqe_error error;
    const auto sentence = [&](awqe_status status, awqe_status expected, const char* words) {
        CHECK_EQUAL(status, expected);
        if (std::strstr(error.message, words) == nullptr) fail(__FILE__, __LINE__, error.message);
    };
    sentence(restore(open_session(AWQE_KV_INT8), bytes, &error), AWQE_INVALID_ARGUMENT,
             "another type of cache than this session's int8");
    sentence(restore(open_session(AWQE_KV_F16, 99), bytes, &error), AWQE_CONTEXT_FULL,
             "has 100 tokens, this session has room for 99");
    Bytes other = bytes;
    other[8] = '9';
    sentence(restore(original, other, &error), AWQE_UNSUPPORTED, "not saved by awq-edge");
    other = bytes;
    other[40] = other[40] == 'a' ? 'b' : 'a';
    sentence(restore(original, other, &error), AWQE_INVALID_ARGUMENT, "another model");
    sentence(restore(original, Bytes(bytes.begin(), bytes.end() - 1), &error), AWQE_FILE_INVALID,
             "is damaged");
    uint64_t size = 7;
    sentence(awqe_session_saved_bytes(original.get(), 0, 101, &size, &error), AWQE_INVALID_ARGUMENT,
             "end is 101, allowed are 1 to the 100");
    CHECK_EQUAL(size, uint64_t{0});
    sentence(awqe_session_saved_bytes(original.get(), 0, 0, &size, &error), AWQE_INVALID_ARGUMENT,
             "end is 0");
    sentence(awqe_session_saved_bytes(original.get(), 50, 50, &size, &error), AWQE_INVALID_ARGUMENT,
             "begin is 50, which is not before the end");
    uint8_t one = 0;
    sentence(awqe_session_save(original.get(), 0, 100, &one, 1, &error), AWQE_INVALID_ARGUMENT,
             "size is 1, the context needs");
    read(original, 100, 320);
    sentence(awqe_session_saved_bytes(original.get(), 0, 100, &size, &error), AWQE_INVALID_ARGUMENT,
             "needed from 164 on");
    // What the ring still has can be saved.
    const OwnedSession restored = open_session(AWQE_KV_F16), whole = open_session(AWQE_KV_F16);
    need(restore(restored, save(original, 164), &error), error);
    read(whole, 0, 164);
    CHECK(read(restored, 164, 200) == read(whole, 164, 200));
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
