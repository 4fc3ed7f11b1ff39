// A whole file as read-only memory. Owns the mapping and everything about it that is the operating
// system's; knows nothing about what the bytes mean.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

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

    // All of the file is about to be read: loads it in the background, in huge pages where the
    // system can, if it fits into half of the machine's memory. A larger file would push out its
    // own beginning; there the system's ordinary read-ahead does better. Once; safe from any
    // thread.
    void expect_use() const;

  private:
    bool mostly_absent() const;
    void load() const;

    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
    mutable std::atomic<bool> expected_{false};
    mutable std::atomic<bool> closing_{false};
    mutable std::thread loader_;
    mutable pid_t loader_process_ = 0;
};

}  // namespace awqe
