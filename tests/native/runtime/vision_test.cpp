// Pictures through the C API. One hash for each form of a tower (tests/native/support/
// random_vision.h), from pixels through embeddings to logits: the same for every kernel table and
// every thread count. What the numbers mean shows tests/python/test_runtime_vision.py; a change of
// a hash is a change of native/ARITHMETIC.md. Beside it: arguments, cancelling, memory.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/process.h"
#include "tests/native/support/random_vision.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/vision_session.h"

namespace awqe::test {
namespace {

// In the order of vision_forms().
constexpr uint64_t kGolden[] = {
    0x403524f79ee41bbe,  // a class token and two matrices
    0x149527e527863054,  // pixels regrouped
    0xcf19630d30cec562,  // an average and an RMS norm
    0xe921aa759a935210,  // regrouped over the edge, a layer norm
    0xd1972bb6db12df2f,  // an average of nine, regrouped
    0xdd118a291e6d344d,  // gated blocks, a resampler
    0xb7ce206f46c0375e,  // gated blocks with norms of queries and keys
    0xf1aeeaea7bc6957f,  // plain gated blocks with layer norms
    0x21420e3d608d5ac4,  // gated blocks that see the tower's own rows
    0xe1197f265d75ba5f,  // seen in both directions
    0x2f10e4b24d3e071b,  // regrouped column by column
    0x7831bc5a75cc9a3f,  // turned, positions of a table, taps
    0xedeebc40e482dfe4,  // turned by row and column
    0xe1af735cb02da82b,  // windows, RMS norms and a gate
};

// FNV-1a over the bytes of floats.
uint64_t hash_more(uint64_t hash, const std::vector<float>& values) {
    for (const float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (bits >> shift & 0xFF)) * 0x100000001B3u;
    }
    return hash;
}

// Embeddings of two pictures, and the logits after each row of: a text, the first picture, a text;
// where layers look at pictures, of a text, one with the first picture, one with the second.
uint64_t hash_of(const OwnedModel& model, const char* kernels, uint32_t threads) {
    const awqe_vision_info info = info_of(model);
    const std::vector<float> embeddings = encode(model, pictures_for(info), kernels, threads);
    uint64_t hash = hash_more(0xCBF29CE484222325u, embeddings);
    const OwnedSession session = open_session(model, kernels, threads);
    std::vector<float> logits;
    read_tokens(session, {1, 5, 2}, logits);
    hash = hash_more(hash, logits);
    if (info.session_bytes > 0) {
        for (size_t picture = 0; picture < kPictures; ++picture) {
            look_at(session, info, embeddings, picture);
            read_tokens(session, {3, 8, 0, 4}, logits);
            hash = hash_more(hash, logits);
        }
        return hash;
    }
    read_picture(session, embeddings, shape_of(info), logits);
    hash = hash_more(hash, logits);
    read_tokens(session, {3, 8, 0, 4}, logits);
    return hash_more(hash, logits);
}

void check_golden(const VisionForm& form, const OwnedModel& model, const char* kernels,
                  uint32_t threads, uint64_t golden) {
    const uint64_t hash = hash_of(model, kernels, threads);
    if (hash == golden) return;
    std::ostringstream text;
    text << form.name << ": " << kernels << " with " << threads << " threads: hash 0x" << std::hex
         << hash << ", not 0x" << golden;
    fail(__FILE__, __LINE__, text.str());
}

}  // namespace

TEST(every_table) {
    const std::vector<VisionForm> forms = vision_forms();
    CHECK_EQUAL(forms.size(), std::size(kGolden));
    for (size_t i = 0; i < forms.size(); ++i) {
        const OwnedModel model = open_bytes(random_vision_model(forms[i]).build());
        for (const KernelTable* table : runnable_tables()) {
            check_golden(forms[i], model, table->name, 1, kGolden[i]);
        }
    }
}

TEST(every_thread_count) {
    const std::vector<VisionForm> forms = vision_forms();
    for (size_t i = 0; i < forms.size(); ++i) {
        const OwnedModel model = open_bytes(random_vision_model(forms[i]).build());
        for (uint32_t threads = 2; threads <= 7; ++threads) {
            check_golden(forms[i], model, "", threads, kGolden[i]);
        }
    }
}

TEST(a_picture_does_not_depend_on_its_neighbour) {
    for (const VisionForm& form : vision_forms()) {
        const OwnedModel model = open_bytes(random_vision_model(form).build());
        const awqe_vision_info info = info_of(model);
        const std::vector<uint8_t> pixels = pictures_for(info);
        const std::vector<float> together = encode(model, pixels, "", 2);
        const size_t bytes = picture_bytes(info);
        for (size_t i = 0; i < kPictures; ++i) {
            const auto begin = pixels.begin() + static_cast<ptrdiff_t>(i * bytes);
            const std::vector<float> alone = encode(
                model, std::vector<uint8_t>(begin, begin + static_cast<ptrdiff_t>(bytes)), "", 1);
            check_same_bits(alone.data(), together.data() + i * alone.size(), alone.size(),
                            form.name);
        }
    }
}

TEST(several_encodings_at_once_give_what_each_gives_alone) {
    const VisionForm form = vision_forms()[1];
    const OwnedModel model = open_bytes(random_vision_model(form).build());
    const std::vector<uint8_t> pixels = pictures_for(info_of(model));
    const std::vector<float> expected = encode(model, pixels, "", 1);
    constexpr size_t kCallers = 3;
    std::vector<std::vector<float>> found(kCallers, std::vector<float>(expected.size()));
    std::vector<awqe_status> statuses(kCallers);
    std::vector<std::thread> callers;
    for (size_t i = 0; i < kCallers; ++i) {
        callers.emplace_back([&, i] {
            statuses[i] = awqe_vision_encode(model.get(), pixels.data(), kPictures, 0, 0,
                                             static_cast<uint32_t>(i + 1), found[i].data(), nullptr,
                                             nullptr, nullptr);
        });
    }
    for (std::thread& caller : callers) caller.join();
    for (size_t i = 0; i < kCallers; ++i) {
        CHECK_EQUAL(statuses[i], AWQE_OK);
        check_same_bits(found[i].data(), expected.data(), expected.size(), form.name);
    }
}

TEST(without_pictures_the_decoder_is_what_it_would_be_alone) {
    ModelForm decoder;
    decoder.qk_norm = false;
    decoder.context_length = 160;
    const OwnedModel text = open_bytes(random_model(decoder).build());
    const OwnedModel both = open_bytes(random_vision_model(vision_forms()[0]).build());
    const std::vector<uint32_t> tokens = {1, 5, 2, 8, 8, 0, 3};
    std::vector<float> expected, logits;
    read_tokens(open_session(text, "", 1), tokens, expected);
    read_tokens(open_session(both, "", 1), tokens, logits);
    check_same_bits(logits.data(), expected.data(), expected.size(), "text alone");
}

namespace {

VisionForm bidirectional_form() {
    for (const VisionForm& form : vision_forms()) {
        if (form.bidirectional) return form;
    }
    fail(__FILE__, __LINE__, "no form is seen in both directions");
}

}  // namespace

TEST(a_picture_that_is_seen_in_both_directions_is_read_as_a_whole) {
    const VisionForm form = bidirectional_form();
    const OwnedModel model = open_bytes(random_vision_model(form).build());
    VisionForm forwards = form;
    forwards.bidirectional = false;
    const OwnedModel causal = open_bytes(random_vision_model(forwards).build());
    const awqe_vision_info info = info_of(model);
    CHECK(info.bidirectional && !info_of(causal).bidirectional);
    CHECK(info.tokens > 128);
    const std::vector<float> rows = encode(model, pictures_for(info), "", 1);
    const size_t numbers = picture_numbers(info);
    const std::vector<float> picture(rows.begin(), rows.begin() + static_cast<ptrdiff_t>(numbers));

    // The last row sees the same ones in both, but they are others behind the first layer; and the
    // first row sees what is behind it.
    const OwnedSession session = open_session(model, "", 2);
    std::vector<float> logits, of_causal;
    read_picture(session, picture, shape_of(info), logits);
    read_picture(open_session(causal, "", 2), picture, shape_of(info), of_causal);
    CHECK(std::memcmp(logits.data(), of_causal.data(), kVocabulary * sizeof(float)) != 0);
    std::vector<float> changed = picture;
    changed.back() += 1.0f;
    std::vector<float> of_changed;
    read_picture(open_session(model, "", 1), changed, shape_of(info), of_changed);
    CHECK(std::memcmp(logits.data(), of_changed.data(), kVocabulary * sizeof(float)) != 0);
    read_picture(open_session(causal, "", 1), changed, shape_of(info), of_changed);
    check_same_bits(of_changed.data(), of_causal.data(), kVocabulary, "seen forwards alone");

    // What comes behind it may go and come again.
    std::vector<float> behind, again;
    read_tokens(session, {3, 8, 0}, behind);
    awqe_error error;
    need(awqe_session_truncate(session.get(), info.tokens, &error), error);
    read_tokens(session, {3, 8, 0}, again);
    check_same_bits(again.data(), behind.data(), behind.size(), "behind a picture");

    for (const size_t count : {size_t{1}, size_t{info.tokens} - 1}) {
        const OwnedSession other = open_session(model, "", 1);
        CHECK_EQUAL(
            awqe_session_evaluate_embeddings(other.get(), picture.data(), count, AWQE_LOGITS_LAST,
                                             nullptr, nullptr, nullptr, &error),
            AWQE_INVALID_ARGUMENT);
        check_error(error, AWQE_INVALID_ARGUMENT, "its 144 embeddings are read in one call");
    }
}

TEST(a_picture_beside_texts_is_what_it_is_alone) {
    const OwnedModel model = open_bytes(random_vision_model(bidirectional_form()).build());
    const awqe_vision_info info = info_of(model);
    const std::vector<float> rows = encode(model, pictures_for(info), "", 1);
    const std::vector<uint32_t> text = {1, 5, 2, 8, 8, 0, 3};
    std::vector<float> of_picture, of_text;
    read_picture(open_session(model, "", 1), rows, shape_of(info), of_picture);
    read_tokens(open_session(model, "", 1), text, of_text);
    std::vector<OwnedSession> sessions;
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < 4; ++i) {
        sessions.push_back(open_session(model, "", 2));
        logits.emplace_back((i % 2 == 0 ? text.size() : info.tokens) * kVocabulary);
    }
    std::vector<awqe_batch_input> inputs(4);
    for (size_t i = 0; i < inputs.size(); ++i) {
        awqe_batch_input& input = inputs[i];
        input.struct_size = sizeof(input);
        input.which = AWQE_LOGITS_ALL;
        input.session = sessions[i].get();
        input.tokens = i % 2 == 0 ? text.data() : nullptr;
        input.embeddings = i % 2 == 0 ? nullptr : rows.data();
        input.count = i % 2 == 0 ? text.size() : info.tokens;
        input.logits = logits[i].data();
    }
    awqe_error error;
    need(awqe_batch_evaluate(inputs.data(), inputs.size(), nullptr, nullptr, &error), error);
    for (size_t i = 0; i < inputs.size(); ++i) {
        const std::vector<float>& alone = i % 2 == 0 ? of_text : of_picture;
        check_same_bits(logits[i].data(), alone.data(), alone.size(), "together");
    }
}

TEST(rows_of_a_picture_turn_by_their_place_and_text_goes_on_behind_the_longer_side) {
    const VisionForm form = vision_forms().back();
    CHECK(form.rotary);
    const OwnedModel model = open_bytes(random_vision_model(form).build());
    const awqe_vision_info info = info_of(model);
    CHECK_EQUAL(info.step, 8u);
    CHECK_EQUAL(info.tokens, 0u);
    const Shape shape = shape_of(info);
    const std::vector<float> rows = encode(model, pictures_for(info), "", 1);
    std::vector<float> by_place, one_by_one, of_one_row;
    const OwnedSession session = open_session(model, "", 2);
    read_picture(session, rows, shape, by_place);
    read_picture(open_session(model, "", 1), rows, {0, 0, shape.tokens, 0}, one_by_one);
    read_picture(open_session(model, "", 1), rows, {0, 0, shape.tokens, shape.tokens}, of_one_row);
    CHECK(std::memcmp(by_place.data(), one_by_one.data(), by_place.size() * sizeof(float)) != 0);
    CHECK(std::memcmp(by_place.data(), of_one_row.data(), by_place.size() * sizeof(float)) != 0);

    // A context that is saved knows how far its numbers are; one that is cut goes back.
    std::vector<float> behind, again;
    read_tokens(session, {3, 8, 0}, behind);
    awqe_error error;
    const uint32_t end = shape.tokens;
    uint64_t bytes = 0;
    need(awqe_session_saved_bytes(session.get(), 0, end, &bytes, &error), error);
    std::vector<uint8_t> saved(bytes);
    need(awqe_session_save(session.get(), 0, end, saved.data(), saved.size(), &error), error);
    const OwnedSession other = open_session(model, "", 1);
    need(awqe_session_restore(other.get(), saved.data(), saved.size(), &error), error);
    read_tokens(other, {3, 8, 0}, again);
    check_same_bits(again.data(), behind.data(), behind.size(), "restored");
    need(awqe_session_truncate(session.get(), end, &error), error);
    read_tokens(session, {3, 8, 0}, again);
    check_same_bits(again.data(), behind.data(), behind.size(), "cut");

    awqe_batch_input input = {};
    input.struct_size = sizeof(input);
    input.session = session.get();
    input.embeddings = rows.data();
    input.count = 5;
    input.columns = 2;
    CHECK_EQUAL(awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error), AWQE_INVALID_ARGUMENT);
    check_error(error, AWQE_INVALID_ARGUMENT, "count is 5, which is no whole number of rows of 2");
}

TEST(pictures_of_any_shape_are_whole_squares) {
    const OwnedModel any = open_bytes(random_vision_model(vision_forms().back()).build());
    const OwnedModel square = open_bytes(random_vision_model(vision_forms()[0]).build());
    std::vector<uint8_t> pixels(size_t{200} * 200 * 3);
    std::vector<float> out(size_t{200} * 200);
    awqe_error error;
    const auto refused = [&](const OwnedModel& model, uint32_t height, uint32_t width,
                             const char* sentence) {
        CHECK_EQUAL(awqe_vision_encode(model.get(), pixels.data(), 1, height, width, 1, out.data(),
                                       nullptr, nullptr, &error),
                    AWQE_INVALID_ARGUMENT);
        check_error(error, AWQE_INVALID_ARGUMENT, sentence);
        uint64_t bytes = 1;
        CHECK_EQUAL(awqe_vision_memory(model.get(), height, width, 1, &bytes, &error),
                    AWQE_INVALID_ARGUMENT);
    };
    refused(any, 16, 20, "pictures are 16 x 20 pixels, this model reads multiples of 8 up to 96");
    refused(any, 0, 16, "pictures are 0 x 16 pixels");
    refused(any, 104, 16, "pictures are 104 x 16 pixels");
    refused(square, 32, 32, "pictures are 32 x 32 pixels, this model reads 33 x 33");
    uint64_t small = 0, large = 0;
    need(awqe_vision_memory(any.get(), 8, 8, 1, &small, &error), error);
    need(awqe_vision_memory(any.get(), 0, 0, 1, &large, &error), error);
    CHECK(0 < small && small < large);
}

TEST(what_the_model_says_of_itself) {
    const OwnedModel model = open_bytes(random_vision_model(vision_forms()[0]).build());
    const awqe_vision_info info = info_of(model);
    CHECK_EQUAL(info.layers, 2u);
    CHECK_EQUAL(info.hidden_size, kVisionHidden);
    CHECK_EQUAL(info.heads, 3u);
    CHECK_EQUAL(info.head_size, 9u);
    CHECK_EQUAL(info.feed_forward_size, kVisionWidth);
    CHECK_EQUAL(info.image_size, 33u);
    CHECK_EQUAL(info.patch_size, 4u);
    CHECK_EQUAL(info.tokens, 64u);
    CHECK_EQUAL(info.embedding_size, kEmbedding);
    CHECK(info.newline != nullptr && std::fabs(info.newline[kEmbedding - 1]) <= 0.5f);
    uint64_t bytes = 0;
    for (const TensorSpec& t : random_vision_model(vision_forms()[0]).tensors) {
        if (t.name[0] == 'v' || t.name[0] == 'm') bytes += t.data.size();
    }
    CHECK_EQUAL(info.weight_bytes, bytes);
    CHECK(info_of(open_bytes(random_vision_model(vision_forms()[1]).build())).newline == nullptr);
}

TEST(what_cannot_work_is_refused) {
    const OwnedModel model = open_bytes(random_vision_model().build());
    const OwnedModel text = open_bytes(random_model().build());
    const awqe_vision_info sizes = info_of(model);
    const std::vector<uint8_t> pixels(picture_bytes(sizes));
    std::vector<float> out(picture_numbers(sizes));
    awqe_error error;
    const auto refused = [&](const awqe_model* of, const uint8_t* from, size_t count,
                             uint32_t threads, float* to, awqe_status status,
                             const char* sentence) {
        CHECK_EQUAL(
            awqe_vision_encode(of, from, count, 0, 0, threads, to, nullptr, nullptr, &error),
            status);
        check_error(error, status, sentence);
    };
    refused(text.get(), pixels.data(), 1, 1, out.data(), AWQE_UNSUPPORTED, "has no vision part");
    refused(nullptr, pixels.data(), 1, 1, out.data(), AWQE_INVALID_ARGUMENT, "model is NULL");
    refused(model.get(), nullptr, 1, 1, out.data(), AWQE_INVALID_ARGUMENT, "pixels is NULL");
    refused(model.get(), pixels.data(), 1, 1, nullptr, AWQE_INVALID_ARGUMENT, "embeddings is NULL");
    refused(model.get(), pixels.data(), 0, 1, out.data(), AWQE_INVALID_ARGUMENT,
            "there are no pictures to encode");
    refused(model.get(), pixels.data(), 1, 1025, out.data(), AWQE_INVALID_ARGUMENT,
            "threads is 1025, allowed are 0 to 1024");
    setenv("AWQ_EDGE_KERNELS", "abacus", 1);
    refused(model.get(), pixels.data(), 1, 1, out.data(), AWQE_UNSUPPORTED, "abacus");
    setenv("AWQ_EDGE_KERNELS", "", 1);

    awqe_vision_info info = {};
    info.struct_size = sizeof(info);
    CHECK_EQUAL(awqe_vision_info_get(text.get(), &info, &error), AWQE_UNSUPPORTED);
    check_error(error, AWQE_UNSUPPORTED, "has no vision part");
    CHECK_EQUAL(awqe_vision_info_get(nullptr, &info, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(awqe_vision_info_get(model.get(), nullptr, &error), AWQE_INVALID_ARGUMENT);
    info.struct_size -= 8;
    info.layers = 77;
    CHECK_EQUAL(awqe_vision_info_get(model.get(), &info, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(info.layers, 77u);
    uint64_t bytes = 1;
    CHECK_EQUAL(awqe_vision_memory(text.get(), 0, 0, 1, &bytes, &error), AWQE_UNSUPPORTED);
    CHECK_EQUAL(bytes, uint64_t{0});
    CHECK_EQUAL(awqe_vision_memory(nullptr, 0, 0, 1, &bytes, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(awqe_vision_memory(model.get(), 0, 0, 1, nullptr, &error), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(awqe_vision_memory(model.get(), 0, 0, 2000, &bytes, &error), AWQE_INVALID_ARGUMENT);
}

namespace {

// A callback that stops after some parts.
struct Stop {
    size_t after;
    size_t told = 0;
    size_t total = 0;
};

bool stop(void* user, size_t done, size_t total) {
    Stop& s = *static_cast<Stop*>(user);
    CHECK_EQUAL(done, ++s.told);
    s.total = total;
    return done < s.after;
}

}  // namespace

TEST(a_callback_cancels_between_parts_and_keeps_whole_pictures) {
    const OwnedModel model = open_bytes(random_vision_model().build());
    const awqe_vision_info info = info_of(model);
    const std::vector<uint8_t> pixels = pictures_for(info);
    const std::vector<float> expected = encode(model, pixels, "", 1);
    const size_t numbers = picture_numbers(info);
    const size_t parts = 2 + 2;  // layers, patches, connector
    awqe_error error;
    for (size_t after = 1; after < kPictures * parts; ++after) {
        std::vector<float> out(expected.size(), 7.0f);
        Stop s = {after};
        CHECK_EQUAL(awqe_vision_encode(model.get(), pixels.data(), kPictures, 0, 0, 2, out.data(),
                                       stop, &s, &error),
                    AWQE_CANCELLED);
        check_error(error, AWQE_CANCELLED,
                    "cancelled after " + std::to_string(after) + " of 8 parts");
        CHECK_EQUAL(s.total, kPictures * parts);
        const size_t whole = after / parts * numbers;
        check_same_bits(out.data(), expected.data(), whole, "whole pictures");
        CHECK(std::all_of(out.begin() + static_cast<ptrdiff_t>(whole), out.end(),
                          [](float x) { return x == 7.0f; }));
    }
    Stop never = {1000};
    std::vector<float> out(expected.size());
    CHECK_EQUAL(awqe_vision_encode(model.get(), pixels.data(), kPictures, 0, 0, 1, out.data(), stop,
                                   &never, &error),
                AWQE_OK);
    CHECK_EQUAL(never.told, kPictures * parts - 1);
    check_same_bits(out.data(), expected.data(), expected.size(), "not stopped");
}

namespace {

bool note_address_space(void* user, size_t, size_t) {
    *static_cast<uint64_t*>(user) = address_space_bytes();
    return true;
}

bool end_thread(void*, size_t, size_t) { pthread_exit(nullptr); }

}  // namespace

TEST(announced_memory_is_what_encoding_takes_and_gives_back) {
    const OwnedModel model = open_bytes(random_vision_model().build());
    const awqe_vision_info info = info_of(model);
    const std::vector<uint8_t> pixels(picture_bytes(info));
    std::vector<float> out(picture_numbers(info));
    uint64_t one = 0, three = 0, during = 0;
    awqe_error error;
    need(awqe_vision_memory(model.get(), 0, 0, 1, &one, &error), error);
    need(awqe_vision_memory(model.get(), 0, 0, 3, &three, &error), error);
    CHECK(three > one);
    const auto run = [&] {
        need(awqe_vision_encode(model.get(), pixels.data(), 1, 0, 0, 1, out.data(),
                                note_address_space, &during, &error),
             error);
    };
    const size_t threads = thread_count();
    run();  // the first one lets the heap grow, and a thread load the file
    wait_for_threads(threads);
    const uint64_t before = address_space_bytes();
    run();
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    CHECK_EQUAL(during - before, (one + page - 1) / page * page);
    CHECK_EQUAL(address_space_bytes(), before);

    // A callback that ends its thread leaves nothing behind either.
    struct Call {
        const awqe_model* model;
        const uint8_t* pixels;
        float* out;
    } call = {model.get(), pixels.data(), out.data()};
    const auto in_thread = [&] {
        pthread_t thread;
        CHECK_EQUAL(pthread_create(
                        &thread, nullptr,
                        [](void* user) -> void* {
                            const Call& c = *static_cast<const Call*>(user);
                            awqe_vision_encode(c.model, c.pixels, 1, 0, 0, 1, c.out, end_thread,
                                               nullptr, nullptr);
                            return nullptr;
                        },
                        &call),
                    0);
        CHECK_EQUAL(pthread_join(thread, nullptr), 0);
    };
    in_thread();  // its stack stays for the next thread
    wait_for_threads(threads);
    const uint64_t with_stack = address_space_bytes();
    for (int i = 0; i < 3; ++i) in_thread();
    wait_for_threads(threads);
    CHECK_EQUAL(address_space_bytes(), with_stack);
}

TEST(pictures_that_are_no_numbers_are_refused_where_they_are_read) {
    FileSpec file = random_vision_model();
    const float bad = INFINITY;
    std::memcpy(file.tensor("v.position_embd.weight").data.data(), &bad, sizeof(bad));
    const OwnedModel model = open_bytes(file.build());
    const awqe_vision_info info = info_of(model);
    const std::vector<float> embeddings = encode(model, pictures_for(info), "", 1);
    const OwnedSession session = open_session(model, "", 1);
    awqe_error error;
    CHECK_EQUAL(
        awqe_session_evaluate_embeddings(session.get(), embeddings.data(), info.tokens,
                                         AWQE_LOGITS_LAST, nullptr, nullptr, nullptr, &error),
        AWQE_INVALID_ARGUMENT);
    check_error(error, AWQE_INVALID_ARGUMENT, "embedding 0 holds a number that is not finite");
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
