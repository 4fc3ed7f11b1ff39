// Memory of a session: one region of zero pages from the system, cut into arrays. The same function
// that hands out the arrays also counts their bytes, so what a session reports and what it takes
// cannot differ. Frees everything at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace awqe {

// Huge pages save address translations; small ones make touching a byte cost 4 KiB of memory
// instead of 2 MiB.
enum class PageSize { kSmall, kHuge };

// Zero-filled pages that become resident when they are first written, not before.
class PageRegion {
  public:
    // Throws Failure with AWQE_OUT_OF_MEMORY.
    PageRegion(size_t bytes, PageSize page_size);
    ~PageRegion();
    PageRegion(const PageRegion&) = delete;
    PageRegion& operator=(const PageRegion&) = delete;

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_ = nullptr;
    size_t size_;
};

// Cuts a region into arrays aligned to 64 bytes. Without a region it only counts, and hands out
// NULL.
class Arena {
  public:
    Arena() = default;
    explicit Arena(const PageRegion& region) : base_(region.data()) {}

    template <class T>
    T* take(size_t count) {
        uint8_t* const begin = base_ == nullptr ? nullptr : base_ + used_;
        used_ += (count * sizeof(T) + 63) / 64 * 64;  // a cache line: threads do not share one
        return reinterpret_cast<T*>(begin);
    }

    size_t used() const { return used_; }

  private:
    uint8_t* base_ = nullptr;
    size_t used_ = 0;
};

}  // namespace awqe
