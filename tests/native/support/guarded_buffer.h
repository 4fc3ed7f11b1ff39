// An array that ends at a page the process may not touch: one byte read or written past its end
// stops the test. Filled with a pattern, so that what a kernel left alone can be told from what it
// wrote.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace awqe::test {

template <typename T>
class GuardedBuffer {
  public:
    static constexpr unsigned char kFill = 0x5a;

    explicit GuardedBuffer(size_t count) : count_(count) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t used = (count * sizeof(T) + page - 1) / page * page;
        mapped_ = used + page;
        base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::runtime_error("mmap failed");
        char* guard = static_cast<char*>(base_) + used;
        if (mprotect(guard, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
        std::memset(base_, kFill, used);
        data_ = reinterpret_cast<T*>(guard) - count;
    }
    GuardedBuffer(GuardedBuffer&& other) noexcept
        : base_(std::exchange(other.base_, nullptr)),
          mapped_(other.mapped_),
          data_(other.data_),
          count_(other.count_) {}
    GuardedBuffer(const GuardedBuffer&) = delete;
    GuardedBuffer& operator=(const GuardedBuffer&) = delete;
    GuardedBuffer& operator=(GuardedBuffer&&) = delete;
    ~GuardedBuffer() {
        if (base_ != nullptr) munmap(base_, mapped_);
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }

    // Nobody has written element i since the buffer was made.
    bool untouched(size_t i) const {
        unsigned char pattern[sizeof(T)];
        std::memset(pattern, kFill, sizeof(T));
        return std::memcmp(data_ + i, pattern, sizeof(T)) == 0;
    }

  private:
    void* base_ = nullptr;
    size_t mapped_ = 0;
    T* data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace awqe::test
