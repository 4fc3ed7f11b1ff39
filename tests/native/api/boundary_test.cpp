// guard() maps every kind of exception, and structures with another size are refused.
#include "native/api/boundary.h"

#include <stdexcept>
#include <string>

#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

awqe_error filled() {
    awqe_error error;
    std::memset(&error, 0x55, sizeof(error));
    return error;
}

}  // namespace

TEST(success_clears_the_error) {
    awqe_error error = filled();
    CHECK_EQUAL(guard(&error, [] {}), AWQE_OK);
    CHECK_EQUAL(error.status, AWQE_OK);
    CHECK_EQUAL(error.message[0], '\0');
    CHECK_EQUAL(guard(nullptr, [] {}), AWQE_OK);
}

TEST(every_failure_keeps_its_status_and_sentence) {
    for (awqe_status status :
         {AWQE_INVALID_ARGUMENT, AWQE_FILE_UNREADABLE, AWQE_FILE_INVALID, AWQE_UNSUPPORTED,
          AWQE_OUT_OF_MEMORY, AWQE_CONTEXT_FULL, AWQE_CANCELLED, AWQE_INTERNAL}) {
        awqe_error error = filled();
        const auto body = [&] { awqe::fail(status, "number %d of %s", 7, "all"); };
        CHECK_EQUAL(guard(&error, body), status);
        CHECK_EQUAL(error.status, status);
        CHECK_EQUAL(std::string(error.message), "number 7 of all");
        CHECK_EQUAL(guard(nullptr, body), status);
    }
}

TEST(other_exceptions_are_mapped) {
    awqe_error error = filled();
    CHECK_EQUAL(guard(&error, [] { throw std::bad_alloc(); }), AWQE_OUT_OF_MEMORY);
    CHECK(error.message[0] != '\0');
    CHECK_EQUAL(guard(&error, [] { throw std::runtime_error("something odd"); }), AWQE_INTERNAL);
    CHECK_EQUAL(std::string(error.message), "something odd");
    CHECK_EQUAL(guard(&error, [] { throw 7; }), AWQE_INTERNAL);
    CHECK(error.message[0] != '\0');
}

TEST(long_messages_are_cut_between_characters) {
    awqe_error error = filled();
    guard(&error, [] { throw Failure(AWQE_INTERNAL, std::string(1000, 'x').c_str()); });
    CHECK_EQUAL(std::string(error.message), std::string(255, 'x'));
    // The 255th byte would be the first half of a two-byte character.
    const std::string text = std::string(254, 'x') + "\xC3\xA9";
    guard(&error, [&] { throw Failure(AWQE_INTERNAL, text.c_str()); });
    CHECK_EQUAL(std::string(error.message), std::string(254, 'x'));
    guard(&error, [] { awqe::fail(AWQE_INTERNAL, "%s", std::string(5000, 'y').c_str()); });
    CHECK_EQUAL(std::string(error.message), std::string(255, 'y'));
}

TEST(structures_of_another_version_are_refused) {
    awqe_session_options options = {};
    for (uint32_t size : {0u, 4u, static_cast<uint32_t>(sizeof(options)) + 4}) {
        options.struct_size = size;
        awqe_error error = filled();
        CHECK_EQUAL(guard(&error, [&] { sized(&options, "options"); }), AWQE_INVALID_ARGUMENT);
        CHECK_EQUAL(std::string(error.message),
                    "options.struct_size is " + std::to_string(size) + ", this library needs 32");
    }
    awqe_session_options* const none = nullptr;
    awqe_error error = filled();
    CHECK_EQUAL(guard(&error, [&] { sized(none, "options"); }), AWQE_INVALID_ARGUMENT);
    CHECK_EQUAL(std::string(error.message), "options is NULL");
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
