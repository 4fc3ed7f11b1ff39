// A mapped file shows its bytes before, while and after it is loaded, and may be closed at any
// time.
#include "native/format/mapped_file.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "native/failure/failure.h"
#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

constexpr size_t kStep =
    (size_t{1} << 20) + 4096;  // between two marks: neither page size divides it
constexpr size_t kMarks = 80;
constexpr size_t kBytes = kMarks * kStep - 100;  // several rounds of loading, and no whole page

uint32_t mark_of(size_t i) { return static_cast<uint32_t>(0x9E3779B9u * (i + 1)); }

// Holes but for the marks, so that it takes little of the disk.
class TemporaryFile {
  public:
    TemporaryFile() {
        const char* const directory = std::getenv("TMPDIR");
        path_ = std::string(directory == nullptr ? "/tmp" : directory) + "/awq_edge_XXXXXX";
        const int file = mkstemp(path_.data());
        CHECK(file >= 0);
        bool written = ftruncate(file, kBytes) == 0;
        for (size_t i = 0; i < kMarks; ++i) {
            const uint32_t mark = mark_of(i);
            written &= pwrite(file, &mark, sizeof(mark), static_cast<off_t>(i * kStep)) ==
                       static_cast<ssize_t>(sizeof(mark));
        }
        close(file);
        CHECK(written);
    }
    ~TemporaryFile() { unlink(path_.c_str()); }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    const char* path() const { return path_.c_str(); }

  private:
    std::string path_;
};

void check_marks(const MappedFile& file) {
    CHECK_EQUAL(file.size(), kBytes);
    for (size_t i = 0; i < kMarks; ++i) {
        uint32_t mark;
        std::memcpy(&mark, file.data() + i * kStep, sizeof(mark));
        CHECK_EQUAL(mark, mark_of(i));
    }
    CHECK_EQUAL(+file.data()[kBytes - 1], 0);
}

TEST(the_bytes_are_there_before_and_while_they_are_loaded) {
    const TemporaryFile temporary;
    const MappedFile file(temporary.path());
    check_marks(file);
    file.expect_use();
    check_marks(file);
    file.expect_use();  // a second session of the model
    check_marks(file);
}

TEST(several_threads_may_expect_use) {
    const TemporaryFile temporary;
    const MappedFile file(temporary.path());
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { file.expect_use(); });
    for (std::thread& thread : threads) thread.join();
    check_marks(file);
}

TEST(a_file_may_be_closed_while_it_is_loaded) {
    const TemporaryFile temporary;
    for (int i = 0; i < 20; ++i) {
        const MappedFile file(temporary.path());
        file.expect_use();
    }
    const MappedFile file(temporary.path());
    check_marks(file);
}

TEST(what_cannot_be_mapped_is_refused) {
    for (const char* path : {"/nonexistent/model.gguf", "/tmp"}) {
        try {
            const MappedFile file(path);
        } catch (const Failure& failure) {
            CHECK_EQUAL(failure.status(), AWQE_FILE_UNREADABLE);
            continue;
        }
        fail(__FILE__, __LINE__, std::string(path) + " was mapped");
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
