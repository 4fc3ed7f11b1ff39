// Bytes of a mapped file to device memory, through two small pinned buffers that take turns: one is
// filled while the GPU reads the other, so no second copy of a model lies in host memory. Owns the
// buffers and the stream.
#pragma once

#include <cstddef>
#include <memory>

#include "native/cuda/device.h"

namespace awqe::cuda {

class Upload {
  public:
    // For up to `most` bytes in all. The context is current, here and below.
    Upload(std::shared_ptr<const Device> device, size_t most);
    ~Upload();
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;

    // `from` may be given up when finish() has returned.
    void copy(Address to, const void* from, size_t bytes);
    void finish();

  private:
    struct Half {
        PinnedBuffer memory;
        OwnedEvent read;  // by the GPU
        bool waiting = false;
    };

    void send(const void* from, size_t bytes, Address to);

    const std::shared_ptr<const Device> device_;
    const size_t half_bytes_;
    Half halves_[2];
    OwnedStream stream_;
    unsigned next_ = 0;
};

}  // namespace awqe::cuda
