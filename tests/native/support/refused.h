// Whether the reader takes a file made by hand, or refuses it with a sentence.
#pragma once

#include <string>

#include "native/failure/failure.h"
#include "native/runtime/model.h"
#include "tests/native/support/check.h"
#include "tests/native/support/model_bytes.h"

namespace awqe::test {

inline void check_accepted(const FileSpec& file) {
    const AlignedBytes bytes(file.build());
    const Model model(bytes.data(), bytes.size());
}

inline void check_refused(const Bytes& file, const std::string& sentence,
                          awqe_status status = AWQE_FILE_INVALID) {
    const AlignedBytes bytes(file);
    try {
        const Model model(bytes.data(), bytes.size());
    } catch (const Failure& failure) {
        if (std::string(failure.what()).find(sentence) == std::string::npos) {
            fail(__FILE__, __LINE__,
                 std::string("'").append(failure.what()).append("' lacks '" + sentence + "'"));
        }
        CHECK_EQUAL(failure.status(), status);
        return;
    }
    fail(__FILE__, __LINE__, "accepted, although: " + sentence);
}

inline void check_refused(const FileSpec& file, const std::string& sentence,
                          awqe_status status = AWQE_FILE_INVALID) {
    check_refused(file.build(), sentence, status);
}

}  // namespace awqe::test
