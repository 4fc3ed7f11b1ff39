// Timing passes over a buffer; see bandwidth.h.
#include "native/cuda/bandwidth.h"

#include <algorithm>

namespace awqe::cuda {
namespace {

// Four times the caches of the largest GPU that was at hand; an eighth of what is free at most.
constexpr size_t kBytes = size_t{256} << 20;
constexpr int kPasses = 10;
constexpr unsigned kThreads = 256;
constexpr unsigned kCtasEach = 8;  // of a multiprocessor

}  // namespace

double read_bandwidth(const std::shared_ptr<const Device>& device) {
    const Device::Use use(*device);
    const Driver& d = device->driver();
    const size_t bytes =
        std::max<size_t>(std::min(kBytes, device->free_bytes() / 8) / 4096, 1) * 4096;
    const Buffer memory(device, bytes);
    const Buffer sum(device, sizeof(unsigned));
    const OwnedStream opened = open_stream(d);
    const Stream stream = opened.get();
    const OwnedEvent begin = open_event(d, true);
    const OwnedEvent end = open_event(d, true);
    check(d.cuMemsetD8Async(memory.address(), 1, bytes, stream), "clear its memory");
    const Launcher launch(*device, stream);
    const Function read = device->kernel("read_memory");
    const unsigned grid = static_cast<unsigned>(device->facts().multiprocessors) * kCtasEach;
    double best = 0;
    for (int pass = 0; pass <= kPasses; ++pass) {  // the first one loads the kernel
        check(d.cuEventRecord(begin.get(), stream), "measure a time");
        launch(read, {grid}, kThreads, 0, memory.as<const unsigned char>(),
               static_cast<long long>(bytes / 16), sum.as<unsigned>());
        check(d.cuEventRecord(end.get(), stream), "measure a time");
        check(d.cuStreamSynchronize(stream), "read its memory");
        float milliseconds = 0;
        check(d.cuEventElapsedTime(&milliseconds, begin.get(), end.get()), "measure a time");
        if (pass > 0 && milliseconds > 0) {
            best = std::max(best, static_cast<double>(bytes) / (1e-3 * double{milliseconds}));
        }
    }
    return best;
}

}  // namespace awqe::cuda
