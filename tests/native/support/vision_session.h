// Pictures and sessions of the models of random_vision.h, through the C API.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"
#include "tests/native/support/random_vision.h"

namespace awqe::test {

constexpr size_t kVocabulary = 9;
constexpr size_t kPictures = 2;

inline awqe_vision_info info_of(const OwnedModel& model) {
    awqe_vision_info info = {};
    info.struct_size = sizeof(info);
    awqe_error error;
    need(awqe_vision_info_get(model.get(), &info, &error), error);
    return info;
}

// Of the pictures of a test: a square, or where they have any shape, one that ends within a window.
struct Shape {
    uint32_t height, width;    // pixels
    uint32_t tokens, columns;  // embeddings, and those of a row
};

inline Shape shape_of(const awqe_vision_info& info) {
    if (info.step != 0) return {5 * info.step, 7 * info.step, 35, 7};
    uint32_t side = 1;
    while (side * side < info.tokens) ++side;
    return {info.image_size, info.image_size, info.tokens, side};
}

inline size_t picture_bytes(const awqe_vision_info& info) {
    return size_t{shape_of(info).height} * shape_of(info).width * 3;
}

inline size_t picture_numbers(const awqe_vision_info& info) {
    return size_t{shape_of(info).tokens} * info.embedding_size;
}

// Two pictures; the second has a patch of one colour, all of whose groups are equal numbers.
inline std::vector<uint8_t> pictures_for(const awqe_vision_info& info) {
    std::vector<uint8_t> pixels(kPictures * picture_bytes(info));
    Random random(7);
    for (uint8_t& u : pixels) u = static_cast<uint8_t>(random.bits());
    std::fill_n(pixels.begin() + static_cast<ptrdiff_t>(picture_bytes(info)),
                shape_of(info).width * info.patch_size * 3, uint8_t{128});
    return pixels;
}

inline std::vector<float> encode(const OwnedModel& model, const std::vector<uint8_t>& pixels,
                                 const char* kernels, uint32_t threads) {
    setenv("AWQ_EDGE_KERNELS", kernels, 1);
    const awqe_vision_info info = info_of(model);
    const size_t count = pixels.size() / picture_bytes(info);
    std::vector<float> embeddings(count * picture_numbers(info), NAN);
    awqe_error error;
    need(awqe_vision_encode(model.get(), pixels.data(), count, shape_of(info).height,
                            shape_of(info).width, threads, embeddings.data(), nullptr, nullptr,
                            &error),
         error);
    return embeddings;
}

inline OwnedSession open_session(const OwnedModel& model, const char* kernels, uint32_t threads) {
    setenv("AWQ_EDGE_KERNELS", kernels, 1);
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.threads = options.prefill_threads = threads;
    awqe_session* session = nullptr;
    awqe_error error;
    need(awqe_session_open(model.get(), &options, &session, &error), error);
    return OwnedSession(session);
}

inline void read_tokens(const OwnedSession& session, const std::vector<uint32_t>& tokens,
                        std::vector<float>& logits) {
    logits.resize(tokens.size() * kVocabulary);
    awqe_error error;
    need(awqe_session_evaluate(session.get(), tokens.data(), tokens.size(), AWQE_LOGITS_ALL,
                               logits.data(), nullptr, nullptr, &error),
         error);
}

// The first picture of `rows`, and the logits after each of its embeddings.
inline void read_picture(const OwnedSession& session, const std::vector<float>& rows,
                         const Shape& shape, std::vector<float>& logits) {
    logits.resize(shape.tokens * kVocabulary);
    awqe_batch_input input = {};
    input.struct_size = sizeof(input);
    input.which = AWQE_LOGITS_ALL;
    input.session = session.get();
    input.embeddings = rows.data();
    input.count = shape.tokens;
    input.columns = shape.columns;
    input.logits = logits.data();
    awqe_error error;
    need(awqe_batch_evaluate(&input, 1, nullptr, nullptr, &error), error);
}

inline void check_error(const awqe_error& error, awqe_status status, const std::string& sentence) {
    CHECK_EQUAL(error.status, status);
    if (std::string(error.message).find(sentence) == std::string::npos) {
        fail(__FILE__, __LINE__, std::string(error.message) + ", not: " + sentence);
    }
}

// Layers look at one of several encoded pictures from here on.
inline void look_at(const OwnedSession& session, const awqe_vision_info& info,
                    const std::vector<float>& embeddings, size_t picture) {
    awqe_error error;
    need(awqe_session_look_at(session.get(), embeddings.data() + picture * picture_numbers(info),
                              info.tokens, &error),
         error);
}

}  // namespace awqe::test
