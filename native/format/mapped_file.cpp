// Maps a file with POSIX calls; see mapped_file.h. A mapping is shared: every process that opens a
// model has the same pages.
#include "native/format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "native/failure/failure.h"

namespace awqe {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLoadBytes = 16 * kHugePage;  // between two looks at whether the file is closed
// Linux 5.14 and 5.4 know them, the C library's headers later; an older system refuses them.
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ
constexpr int kPageOut = 21;       // MADV_PAGEOUT

// A descriptor that closes itself; the mapping outlives it.
struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) close(number);
    }
};

[[noreturn]] void refuse(const char* path, const char* what) {
    fail(AWQE_FILE_UNREADABLE, "cannot %s %.150s: %s", what, path, std::strerror(errno));
}

}  // namespace

MappedFile::MappedFile(const char* path) {
    // What is no file answers at once too: opening a FIFO would wait for somebody who writes.
    const Descriptor file{open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
    if (file.number < 0) refuse(path, "open");
    struct stat status;
    if (fstat(file.number, &status) != 0) refuse(path, "examine");
    if (!S_ISREG(status.st_mode)) {
        fail(AWQE_FILE_UNREADABLE, "cannot map %.150s: it is not a regular file", path);
    }
    size_ = static_cast<size_t>(status.st_size);
    if (size_ == 0) return;  // mmap refuses nothing at all; the reader has a sentence for it
    void* bytes = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.number, 0);
    if (bytes == MAP_FAILED) refuse(path, "map");
    data_ = static_cast<const uint8_t*>(bytes);
    // Until the weights are used only headers are read, one for each matrix.
    madvise(bytes, size_, MADV_RANDOM);
}

MappedFile::~MappedFile() {
    closing_.store(true, std::memory_order_relaxed);
    if (loader_.joinable()) {
        if (loader_process_ == getpid()) {
            loader_.join();
        } else {
            // A fork has left the thread behind. Nothing may be done with its handle.
            new std::thread(std::move(loader_));
        }
    }
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::expect_use() const {
    if (data_ == nullptr || expected_.exchange(true)) return;
    uint8_t* const bytes = const_cast<uint8_t*>(data_);
    madvise(bytes, size_, MADV_NORMAL);
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page_bytes = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page_bytes <= 0) return;
    const uint64_t memory_bytes = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes);
    if (size_ > memory_bytes / 2) return;
    // A huge page cannot take the place of the small one that a header was read from. All of these
    // are wishes.
    if (mostly_absent()) madvise(bytes, size_, kPageOut);
    madvise(bytes, size_, MADV_HUGEPAGE);
    try {
        loader_process_ = getpid();
        loader_ = std::thread([this] { load(); });
    } catch (const std::system_error&) {
        madvise(bytes, size_, MADV_WILLNEED);
    }
}

// Looks at one page in the middle of each huge one.
bool MappedFile::mostly_absent() const {
    size_t looked = 0;
    size_t present = 0;
    for (size_t at = kHugePage / 2; at < size_; at += kHugePage) {
        unsigned char resident = 0;
        if (mincore(const_cast<uint8_t*>(data_) + at, 1, &resident) != 0) return false;
        looked += 1;
        present += resident & 1;
    }
    return present < looked / 2;
}

// The system's read-ahead alone would load it in small pages.
void MappedFile::load() const {
    for (size_t at = 0; at < size_ && !closing_.load(std::memory_order_relaxed); at += kLoadBytes) {
        uint8_t* const begin = const_cast<uint8_t*>(data_) + at;
        if (madvise(begin, std::min(kLoadBytes, size_ - at), kPopulateRead) != 0) {
            madvise(begin, size_ - at, MADV_WILLNEED);
            return;
        }
    }
}

}  // namespace awqe
