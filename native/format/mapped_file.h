// A whole file as read-only memory. Owns the mapping and everything about it that is the operating
// system's; knows nothing about what the bytes mean.
#pragma once

#include <cstddef>
#include <cstdint>

namespace awqe {

class MappedFile {
  public:
    // Throws Failure with AWQE_FILE_UNREADABLE.
    explicit MappedFile(const char* path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }  // page-aligned; NULL for an empty file
    size_t size() const { return size_; }

    // Tells the system that all of the file is about to be read, if it fits into half of the
    // machine's memory. A larger file would push out its own beginning; there the system's ordinary
    // read-ahead does better.
    void expect_use() const;

  private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace awqe
