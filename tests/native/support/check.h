// A C++ test in three words: TEST(name) { ... CHECK(condition); CHECK_EQUAL(a, b); }, and one main
// for all of a program's. Owns registration and reporting. A failed check ends its test and names
// the line; the program then exits with 1.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace awqe::test {

struct Case {
    const char* name;
    void (*body)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Registration {
    Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
    std::ostringstream text;
    text << file << ':' << line << ": " << what;
    throw std::runtime_error(text.str());
}

// Runs every case, or those whose name contains argv[1].
inline int run(int argc, char** argv) {
    const std::string filter = argc > 1 ? argv[1] : "";
    int ran = 0;
    int failed = 0;
    for (const Case& c : cases()) {
        if (std::string(c.name).find(filter) == std::string::npos) continue;
        ++ran;
        try {
            c.body();
        } catch (const std::exception& e) {
            ++failed;
            std::fprintf(stderr, "FAILED %s\n  %s\n", c.name, e.what());
        }
    }
    std::printf("%d tests, %d failed\n", ran, failed);
    return failed != 0 || ran == 0 ? 1 : 0;
}

}  // namespace awqe::test

#define TEST(name)                                                                   \
    static void test_##name();                                                       \
    static const ::awqe::test::Registration registration_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) ::awqe::test::fail(__FILE__, __LINE__, #condition); \
    } while (false)

#define CHECK_EQUAL(a, b)                                                     \
    do {                                                                      \
        const auto left_ = (a);                                               \
        const auto right_ = (b);                                              \
        if (!(left_ == right_)) {                                             \
            std::ostringstream text_;                                         \
            text_ << #a << " is " << left_ << ", " << #b << " is " << right_; \
            ::awqe::test::fail(__FILE__, __LINE__, text_.str());              \
        }                                                                     \
    } while (false)
