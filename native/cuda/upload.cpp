// Filling and sending in turns; see upload.h.
#include "native/cuda/upload.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace awqe::cuda {
namespace {

// Enough for a copy engine to be busy while the next one is filled.
constexpr size_t kHalfBytes = size_t{8} << 20;
constexpr int kPageOut = 21;  // MADV_PAGEOUT: Linux 5.4 knows it, the C library's headers later

// A wish for whole pages inside or around some bytes.
void advise(const void* bytes, size_t size, bool inside, int advice) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t at = reinterpret_cast<uintptr_t>(bytes);
    const uintptr_t begin = (inside ? at + page - 1 : at) / page * page;
    const uintptr_t end = (inside ? at + size : at + size + page - 1) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

Upload::Upload(std::shared_ptr<const Device> device, size_t most)
    : device_(std::move(device)), half_bytes_(std::clamp<size_t>(most, 1, kHalfBytes)) {
    for (Half& half : halves_) {
        half.memory = PinnedBuffer(device_, half_bytes_);
        half.read = open_event(device_->driver(), false);
    }
    stream_ = open_stream(device_->driver());
}

// What is still on its way reads the buffers.
Upload::~Upload() { device_->driver().cuStreamSynchronize(stream_.get()); }

void Upload::copy(Address to, const void* from, size_t bytes) {
    const unsigned char* const begin = static_cast<const unsigned char*>(from);
    for (size_t done = 0; done < bytes; done += half_bytes_) {
        const size_t some = std::min(half_bytes_, bytes - done);
        // A file that was opened to be read here and there is not read ahead by itself.
        if (done == 0) advise(begin, std::min(bytes, 2 * half_bytes_), false, MADV_WILLNEED);
        const size_t ahead = done + 2 * half_bytes_;
        if (ahead < bytes) {
            advise(begin + ahead, std::min(half_bytes_, bytes - ahead), false, MADV_WILLNEED);
        }
        send(begin + done, some, to + done);
    }
}

void Upload::send(const void* from, size_t bytes, Address to) {
    const Driver& d = device_->driver();
    Half& half = halves_[next_];
    next_ ^= 1;
    if (half.waiting) check(d.cuEventSynchronize(half.read.get()), "copy the weights");
    half.waiting = false;
    std::memcpy(half.memory.as<void>(), from, bytes);
    // Where CPU and GPU share one memory, the page cache would hold the model beside its copy.
    if (device_->facts().integrated) advise(from, bytes, true, kPageOut);
    check(d.cuMemcpyHtoDAsync_v2(to, half.memory.as<void>(), bytes, stream_.get()),
          "copy the weights");
    check(d.cuEventRecord(half.read.get(), stream_.get()), "copy the weights");
    half.waiting = true;
}

void Upload::finish() {
    check(device_->driver().cuStreamSynchronize(stream_.get()), "copy the weights");
}

}  // namespace awqe::cuda
