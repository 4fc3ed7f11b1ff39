// One hash over all logits for every form of a decoder beyond Llama's (tests/native/support/
// random_model.h), with both caches: the same for every kernel table, every thread count and every
// way to cut the text into calls, and for sequences that are evaluated together. What the numbers
// mean shows the oracle below; a change of a hash is a change of native/ARITHMETIC.md.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "awq_edge.h"
#include "native/runtime/model.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/random_model.h"
#include "tests/native/support/tables.h"

namespace awqe::test {
namespace {

constexpr size_t kTokens = 140;  // more than a block of the prompt, three chunks of attention
constexpr size_t kVocabulary = 9;

struct Golden {
    uint64_t fp16;
    uint64_t int8;
};

// In the order of model_forms().
constexpr Golden kGolden[] = {
    {0x2befaa8a70cd3a5e, 0xcf73aa1d82b93ea5},  // layer norms
    {0x9446b20f64f716b8, 0xd6ef6d6492c95731},  // layer norms with biases
    {0x1ebd3d76211067ff, 0x1f78f4e9d3215ac9},  // norms behind the branches
    {0x569a6434175da2ad, 0xca4ca9f96e68088e},  // norms around the branches
    {0xeb57c4211aa5137a, 0xe376780d4e31d1cf},  // norms of the stream
    {0xfb36d59bf680992a, 0xd9d63113c5d27555},  // no final norm
    {0x564f2c4e62dadd77, 0xaf6af76f09244a7e},  // a norm of the embedding
    {0x5139bdff199167cc, 0x492af1794dbfc225},  // parallel branches
    {0xdf9fa2aafa4cc94e, 0x5a25efb431ebd00d},  // learned positions
    {0x5bdb13d64aa52a73, 0x3fe1b0915695e457},  // ALiBi
    {0xa0499b50d60d06da, 0x3241afa8f88781da},  // two rotary tables
    {0x5ed5dcd41e4ac05c, 0x7ccedd0259af533b},  // q/k layer norms with biases
    {0x5240ff38ff296e96, 0x8cb2c1b6073196b5},  // q/k norms with weights of each head
    {0xac16e822f8593f93, 0x8c13a5ad96b31aa3},  // q/k norms over the width
    {0x9a382ab848f01709, 0x889147b486025a81},  // limits of q, k, v
    {0x23f438a776493af5, 0xa75241875e20d0f7},  // a cap of scores
    {0x261993b31751266, 0x72d271ef9cde3999},   // a cap of logits
    {0xf3dd087dc5242aef, 0x66ca6a3d99af5711},  // plain ReLU
    {0x4af4514000bbdafa, 0xc0105b54edb5616f},  // plain GELU with scales
    {0x4e896d03a086dfcc, 0x115ba07b0814a399},  // plain GELU by tanh
    {0xf49547ce096ad9bb, 0x6b297e47f069bdd9},  // plain SiLU
    {0x7e59077206020d03, 0xd13c1d847223615a},  // a bias of the head
    {0xf2c87e7f2fb98e43, 0xe39e4556e5e91e8e},  // experts
    {0x430a62e19dc6a732, 0xb12f4b52cbba1fb4},  // experts of the second layer, renormalised
    {0x19932eb85d744261, 0xc345490e75b20652},  // experts by sparsemixer
    {0xece6e90591420e02, 0x0f25c18fa9c5eb4f},  // a shared expert
    {0xc168f2ff92bdacca, 0x6456bb4099869443},  // a shared expert with a router
    {0x3da87716c8b41ed9, 0xf5281b2dced2669e},  // 5 and 6 bits
};

uint32_t token_at(size_t text, size_t position) {
    return static_cast<uint32_t>((position * position * (text + 3) + 5 * position + text) %
                                 kVocabulary);
}

std::vector<uint32_t> tokens_of(size_t text, size_t begin, size_t end) {
    std::vector<uint32_t> tokens;
    for (size_t i = begin; i < end; ++i) tokens.push_back(token_at(text, i));
    return tokens;
}

// Logits after every token, [kTokens, vocabulary], read in calls of `chunk`.
std::vector<float> logits_of(const OwnedModel& model, const char* kernels, uint32_t threads,
                             size_t chunk, awqe_kv_type kv_type) {
    const OwnedSession session = open_session(model, kernels, threads, kv_type);
    const std::vector<uint32_t> tokens = tokens_of(0, 0, kTokens);
    std::vector<float> logits(kTokens * kVocabulary);
    awqe_error error;
    for (size_t done = 0; done < kTokens; done += chunk) {
        need(awqe_session_evaluate(session.get(), tokens.data() + done,
                                   std::min(chunk, kTokens - done), AWQE_LOGITS_ALL,
                                   logits.data() + done * kVocabulary, nullptr, nullptr, &error),
             error);
    }
    return logits;
}

// FNV-1a over the bytes of floats.
uint64_t hash_of(const std::vector<float>& values) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (const float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (bits >> shift & 0xFF)) * 0x100000001B3u;
    }
    return hash;
}

template <class Check>
void for_every_form(const Check& check) {
    const std::vector<ModelForm> forms = model_forms();
    CHECK_EQUAL(forms.size(), std::size(kGolden));
    for (size_t i = 0; i < forms.size(); ++i) {
        const OwnedModel model = open_bytes(random_model(forms[i]).build());
        check(forms[i], model, AWQE_KV_F16, kGolden[i].fp16);
        check(forms[i], model, AWQE_KV_INT8, kGolden[i].int8);
    }
}

void check_golden(const ModelForm& form, const OwnedModel& model, const char* kernels,
                  uint32_t threads, size_t chunk, awqe_kv_type kv_type, uint64_t golden) {
    const uint64_t hash = hash_of(logits_of(model, kernels, threads, chunk, kv_type));
    if (hash == golden) return;
    std::ostringstream text;
    text << form.name << ": " << kernels << " with " << threads << " threads, calls of " << chunk
         << (kv_type == AWQE_KV_F16 ? "" : ", int8 cache") << ": hash 0x" << std::hex << hash
         << ", not 0x" << golden;
    fail(__FILE__, __LINE__, text.str());
}

}  // namespace

TEST(every_form_differs_from_the_others) {
    std::vector<uint64_t> seen;
    for (const Golden& golden : kGolden) {
        for (const uint64_t hash : {golden.fp16, golden.int8}) {
            CHECK(std::find(seen.begin(), seen.end(), hash) == seen.end());
            seen.push_back(hash);
        }
    }
}

TEST(every_table) {
    for_every_form(
        [](const ModelForm& form, const OwnedModel& model, awqe_kv_type kv_type, uint64_t golden) {
            for (const KernelTable* table : runnable_tables()) {
                check_golden(form, model, table->name, 1, kTokens, kv_type, golden);
            }
        });
}

TEST(every_thread_count_and_way_to_cut_the_text) {
    for_every_form(
        [](const ModelForm& form, const OwnedModel& model, awqe_kv_type kv_type, uint64_t golden) {
            for (const KernelTable* table : runnable_tables()) {
                check_golden(form, model, table->name, 1, 1, kv_type, golden);
                check_golden(form, model, table->name, 2, 7, kv_type, golden);
            }
            check_golden(form, model, "", 3, 129, kv_type, golden);
            check_golden(form, model, "", 4, kTokens, kv_type, golden);
            check_golden(form, model, "", 7, 1, kv_type, golden);
        });
}

TEST(together_as_alone) {
    for_every_form(
        [](const ModelForm& form, const OwnedModel& model, awqe_kv_type kv_type, uint64_t) {
            // Three texts, one of them alone first; prompts of different lengths, then tokens
            // together.
            constexpr size_t kTexts = 3, kLast = 40;
            std::vector<std::vector<float>> expected(kTexts), logits(kTexts);
            std::vector<OwnedSession> alone, together;
            awqe_error error;
            for (size_t i = 0; i < kTexts; ++i) {
                alone.push_back(open_session(model, "", 1, kv_type));
                together.push_back(open_session(model, "", 2, kv_type));
                expected[i].resize(kLast * kVocabulary);
                logits[i].resize(kVocabulary);
                const std::vector<uint32_t> tokens = tokens_of(i, 0, kLast);
                need(awqe_session_evaluate(alone[i].get(), tokens.data(), kLast, AWQE_LOGITS_ALL,
                                           expected[i].data(), nullptr, nullptr, &error),
                     error);
            }
            size_t positions[kTexts] = {};
            for (size_t call = 0; call < 6; ++call) {
                std::vector<awqe_batch_input> inputs(kTexts);
                std::vector<std::vector<uint32_t>> tokens(kTexts);
                for (size_t i = 0; i < kTexts; ++i) {
                    const size_t count = call == 0 ? 9 * i + 1 : i == call % kTexts ? 3 : 1;
                    tokens[i] = tokens_of(i, positions[i], positions[i] + count);
                    positions[i] += count;
                    inputs[i].struct_size = sizeof(awqe_batch_input);
                    inputs[i].which = AWQE_LOGITS_LAST;
                    inputs[i].session = together[i].get();
                    inputs[i].tokens = tokens[i].data();
                    inputs[i].count = count;
                    inputs[i].logits = logits[i].data();
                }
                need(awqe_batch_evaluate(inputs.data(), kTexts, nullptr, nullptr, &error), error);
                for (size_t i = 0; i < kTexts; ++i) {
                    check_same_bits(logits[i].data(),
                                    expected[i].data() + (positions[i] - 1) * kVocabulary,
                                    kVocabulary, form.name);
                }
            }
        });
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
