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

// Closes what it has opened, whatever fails between.
struct Timer {
    explicit Timer(const Driver& driver) : d(driver) {
        check(d.cuStreamCreate(&stream, 1), "open a stream");
        check(d.cuEventCreate(&begin, 0), "measure a time");
        check(d.cuEventCreate(&end, 0), "measure a time");
    }
    ~Timer() {
        for (const Event event : {begin, end}) {
            if (event != nullptr) d.cuEventDestroy_v2(event);
        }
        if (stream != nullptr) d.cuStreamDestroy_v2(stream);
    }

    const Driver& d;
    Stream stream = nullptr;
    Event begin = nullptr;
    Event end = nullptr;
};

}  // namespace

double read_bandwidth(const std::shared_ptr<const Device>& device) {
    const Device::Use use(*device);
    const Driver& d = device->driver();
    const size_t bytes =
        std::max<size_t>(std::min(kBytes, device->free_bytes() / 8) / 4096, 1) * 4096;
    const Buffer memory(device, bytes);
    const Buffer sum(device, sizeof(unsigned));
    const Timer timer(d);
    check(d.cuMemsetD8Async(memory.address(), 1, bytes, timer.stream), "clear its memory");
    const Launcher launch(*device, timer.stream);
    const Function read = device->kernel("read_memory");
    const unsigned grid = static_cast<unsigned>(device->facts().multiprocessors) * kCtasEach;
    double best = 0;
    for (int pass = 0; pass <= kPasses; ++pass) {  // the first one loads the kernel
        check(d.cuEventRecord(timer.begin, timer.stream), "measure a time");
        launch(read, {grid}, kThreads, 0, memory.as<const unsigned char>(),
               static_cast<long long>(bytes / 16), sum.as<unsigned>());
        check(d.cuEventRecord(timer.end, timer.stream), "measure a time");
        check(d.cuStreamSynchronize(timer.stream), "read its memory");
        float milliseconds = 0;
        check(d.cuEventElapsedTime(&milliseconds, timer.begin, timer.end), "measure a time");
        if (pass > 0 && milliseconds > 0) {
            best = std::max(best, static_cast<double>(bytes) / (1e-3 * double{milliseconds}));
        }
    }
    return best;
}

}  // namespace awqe::cuda
