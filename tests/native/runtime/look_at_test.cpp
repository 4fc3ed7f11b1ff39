// Sessions whose layers look at pictures: which row sees which picture, however a text is divided;
// going back; what is refused; memory. Hashes of every form are vision_test's.
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "tests/native/support/process.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/vision_session.h"

namespace awqe::test {
namespace {

// The forms of random_vision.h that have gated blocks.
std::vector<VisionForm> looking_forms() {
    std::vector<VisionForm> forms;
    for (const VisionForm& form : vision_forms()) {
        if (!form.blocks.empty()) forms.push_back(form);
    }
    return forms;
}

struct Opened {
    explicit Opened(const VisionForm& form)
        : model(open_bytes(random_vision_model(form).build())),
          info(info_of(model)),
          pictures(encode(model, pictures_for(info), "", 1)) {}

    const OwnedModel model;
    const awqe_vision_info info;
    const std::vector<float> pictures;
};

std::vector<float> read(const OwnedSession& session, const std::vector<uint32_t>& tokens) {
    std::vector<float> logits;
    read_tokens(session, tokens, logits);
    return logits;
}

void look_at_none(const OwnedSession& session) {
    awqe_error error;
    need(awqe_session_look_at(session.get(), nullptr, 0, &error), error);
}

void truncate(const OwnedSession& session, uint32_t position) {
    awqe_error error;
    need(awqe_session_truncate(session.get(), position, &error), error);
}

const std::vector<uint32_t> kBefore = {1, 5, 2}, kFirst = {3, 8, 0, 4}, kSecond = {7, 7, 6};

// The logits of a text whose parts look at none, at one picture and at the other.
std::vector<float> whole(const Opened& opened, uint32_t threads) {
    const OwnedSession session = open_session(opened.model, "", threads);
    std::vector<float> logits = read(session, kBefore);
    for (size_t picture = 0; picture < kPictures; ++picture) {
        look_at(session, opened.info, opened.pictures, picture);
        const std::vector<float> part = read(session, picture == 0 ? kFirst : kSecond);
        logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
}

void check_equal(const std::vector<float>& found, const std::vector<float>& expected) {
    CHECK_EQUAL(found.size(), expected.size());
    check_same_bits(found.data(), expected.data(), expected.size(), "logits");
}

}  // namespace

TEST(token_by_token_is_the_same_as_at_once) {
    for (const VisionForm& form : looking_forms()) {
        const Opened opened(form);
        const OwnedSession session = open_session(opened.model, "", 3);
        std::vector<float> logits;
        const auto read_one = [&](uint32_t token) {
            const std::vector<float> one = read(session, {token});
            logits.insert(logits.end(), one.begin(), one.end());
        };
        for (const uint32_t token : kBefore) read_one(token);
        look_at(session, opened.info, opened.pictures, 0);
        for (const uint32_t token : kFirst) read_one(token);
        look_at(session, opened.info, opened.pictures, 1);
        for (const uint32_t token : kSecond) read_one(token);
        check_equal(logits, whole(opened, 1));
    }
}

TEST(what_is_seen_matters_and_ends) {
    const Opened opened(looking_forms()[0]);
    const OwnedSession session = open_session(opened.model, "", 1);
    const std::vector<float> blind = read(session, kFirst);
    std::vector<std::vector<float>> seen;
    for (size_t picture = 0; picture < kPictures; ++picture) {
        truncate(session, 0);
        look_at(session, opened.info, opened.pictures, picture);
        seen.push_back(read(session, kFirst));
    }
    CHECK(seen[0] != blind && seen[1] != blind && seen[0] != seen[1]);
    truncate(session, 0);
    look_at(session, opened.info, opened.pictures, 0);
    look_at_none(session);
    check_equal(read(session, kFirst), blind);
}

TEST(going_back_forgets_the_pictures_behind) {
    const Opened opened(looking_forms()[1]);
    const std::vector<float> expected = whole(opened, 1);
    const OwnedSession session = open_session(opened.model, "", 1);
    read(session, kBefore);
    look_at(session, opened.info, opened.pictures, 0);
    read(session, kFirst);
    look_at(session, opened.info, opened.pictures, 0);  // the wrong one
    read(session, kSecond);
    const auto until = static_cast<uint32_t>(kBefore.size() + kFirst.size());
    truncate(session, until);
    look_at(session, opened.info, opened.pictures, 1);
    const std::vector<float> again = read(session, kSecond);
    check_same_bits(again.data(), expected.data() + until * kVocabulary, again.size(), "again");
    // In the middle of a part its picture stays.
    truncate(session, until + 1);
    const std::vector<float> rest = read(session, {kSecond[1], kSecond[2]});
    check_same_bits(rest.data(), expected.data() + (until + 1) * kVocabulary, rest.size(), "rest");
}

TEST(a_text_without_pictures_shares_nothing_behind_one) {
    const Opened opened(looking_forms()[0]);
    const OwnedSession session = open_session(opened.model, "", 1);
    read(session, kBefore);
    look_at(session, opened.info, opened.pictures, 0);
    read(session, kFirst);
    std::vector<uint32_t> text = kBefore;
    text.insert(text.end(), kFirst.begin(), kFirst.end());
    uint32_t reusable = 0;
    awqe_error error;
    need(awqe_session_reusable(session.get(), text.data(), text.size(), &reusable, &error), error);
    CHECK_EQUAL(reusable, static_cast<uint32_t>(kBefore.size()));
}

TEST(sessions_that_read_together_see_their_own) {
    const Opened opened(looking_forms()[2]);
    const OwnedSession first = open_session(opened.model, "", 2);
    const OwnedSession second = open_session(opened.model, "", 2);
    look_at(first, opened.info, opened.pictures, 0);
    look_at(second, opened.info, opened.pictures, 1);
    std::vector<float> together[2];
    awqe_batch_input inputs[2] = {};
    for (size_t i = 0; i < 2; ++i) {
        together[i].resize(kFirst.size() * kVocabulary);
        inputs[i].struct_size = sizeof(inputs[i]);
        inputs[i].which = AWQE_LOGITS_ALL;
        inputs[i].session = i == 0 ? first.get() : second.get();
        inputs[i].tokens = kFirst.data();
        inputs[i].count = kFirst.size();
        inputs[i].logits = together[i].data();
    }
    awqe_error error;
    need(awqe_batch_evaluate(inputs, 2, nullptr, nullptr, &error), error);
    for (size_t i = 0; i < 2; ++i) {
        const OwnedSession alone = open_session(opened.model, "", 1);
        look_at(alone, opened.info, opened.pictures, i);
        check_equal(together[i], read(alone, kFirst));
    }
}

TEST(what_cannot_work_is_refused) {
    const Opened opened(looking_forms()[0]);
    const OwnedSession session = open_session(opened.model, "", 1);
    awqe_error error;
    const auto refused = [&](awqe_session* of, const float* rows, size_t count, awqe_status status,
                             const char* sentence) {
        CHECK_EQUAL(awqe_session_look_at(of, rows, count, &error), status);
        check_error(error, status, sentence);
    };
    const float* const rows = opened.pictures.data();
    refused(session.get(), rows, 5, AWQE_INVALID_ARGUMENT,
            "count is 5, but a picture of this model has 6 rows");
    refused(nullptr, rows, 6, AWQE_INVALID_ARGUMENT, "session is NULL");
    for (const float bad : {NAN, -INFINITY, 65520.0f}) {
        std::vector<float> damaged = opened.pictures;
        damaged[opened.info.embedding_size + 3] = bad;
        refused(session.get(), damaged.data(), 6, AWQE_INVALID_ARGUMENT,
                "row 1 holds a number that half precision does not, at 3");
    }
    const OwnedModel rows_in_text = open_bytes(random_vision_model().build());
    const OwnedSession other = open_session(rows_in_text, "", 1);
    refused(other.get(), rows, 6, AWQE_UNSUPPORTED, "layers of this model look at no pictures");
    CHECK_EQUAL(info_of(rows_in_text).session_bytes, uint64_t{0});

    // A saved context holds no pictures; one that has seen none is saved as any other.
    uint64_t bytes = 0;
    read(session, kBefore);
    need(awqe_session_saved_bytes(session.get(), 0, 3, &bytes, &error), error);
    std::vector<uint8_t> saved(bytes);
    need(awqe_session_save(session.get(), 0, 3, saved.data(), saved.size(), &error), error);
    look_at(session, opened.info, opened.pictures, 0);
    read(session, kFirst);
    CHECK_EQUAL(awqe_session_saved_bytes(session.get(), 0, 7, &bytes, &error), AWQE_UNSUPPORTED);
    check_error(error, AWQE_UNSUPPORTED, "looks at pictures, which are not saved");
    need(awqe_session_restore(session.get(), saved.data(), saved.size(), &error), error);
    const OwnedSession fresh = open_session(opened.model, "", 1);
    read(fresh, kBefore);
    check_equal(read(session, kFirst), read(fresh, kFirst));
}

TEST(announced_memory_is_what_a_picture_takes_and_gives_back) {
    const Opened opened(looking_forms()[3]);
    CHECK_EQUAL(opened.info.session_bytes,
                uint64_t{opened.info.tokens} * opened.info.embedding_size * sizeof(uint16_t));
    const OwnedSession session = open_session(opened.model, "", 1);
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    look_at(session, opened.info, opened.pictures, 0);  // the first one lets the heap grow
    read(session, kFirst);
    const uint64_t before = address_space_bytes();
    look_at(session, opened.info, opened.pictures, 1);
    CHECK_EQUAL(address_space_bytes() - before,
                (opened.info.session_bytes + page - 1) / page * page);
    read(session, kSecond);
    truncate(session, static_cast<uint32_t>(kFirst.size()));
    CHECK_EQUAL(address_space_bytes(), before);
    awqe_memory with = {}, without = {};
    with.struct_size = without.struct_size = sizeof(with);
    awqe_error error;
    ModelForm text;
    text.qk_norm = false;
    text.context_length = 160;
    const OwnedModel alone = open_bytes(random_model(text).build());
    need(awqe_session_memory(opened.model.get(), nullptr, &with, &error), error);
    need(awqe_session_memory(alone.get(), nullptr, &without, &error), error);
    CHECK_EQUAL(with.cache_bytes - without.cache_bytes, (opened.info.session_bytes + 63) / 64 * 64);
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
