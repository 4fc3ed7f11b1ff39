// Maps a file with POSIX calls; see mapped_file.h. A mapping is shared: every process that opens a
// model has the same pages.
#include "native/format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "native/api/failure.h"

namespace awqe {
namespace {

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
    const Descriptor file{open(path, O_RDONLY | O_CLOEXEC)};
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
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::expect_use() const {
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page_bytes = sysconf(_SC_PAGESIZE);
    if (data_ == nullptr || pages <= 0 || page_bytes <= 0) return;
    const uint64_t memory_bytes = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes);
    if (size_ <= memory_bytes / 2) madvise(const_cast<uint8_t*>(data_), size_, MADV_WILLNEED);
}

}  // namespace awqe
