// Pages from the system; see arena.h.
#include "native/runtime/arena.h"

#include <sys/mman.h>

#include "native/failure/failure.h"

namespace awqe {

PageRegion::PageRegion(size_t bytes, PageSize page_size) : size_(bytes) {
    if (bytes == 0) return;
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        fail(AWQE_OUT_OF_MEMORY, "the system refuses %zu MiB of memory", bytes >> 20);
    }
    data_ = static_cast<uint8_t*>(pages);
    // A wish: a system that refuses it gives its ordinary pages.
    madvise(pages, bytes, page_size == PageSize::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

PageRegion::~PageRegion() {
    if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace awqe
