// One GPU as this library uses it: its context, the module of kernels for it, memory and launches.
// Owns the choice of the module by compute capability; knows no model.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "native/cuda/driver.h"

namespace awqe::cuda {

struct DeviceFacts {
    std::string name;
    int capability;  // 10 * major + minor
    int multiprocessors;
    bool integrated;  // CPU and GPU share one memory
    size_t memory_bytes;
    int shared_bytes;        // that a CTA may ask for
    bool page_tables;        // it reads all that the CPU reads
    bool registers_mapping;  // the driver registers read-only memory
    bool host_pointers;      // of registered memory are the GPU's too
    const char* module;      // which of the embedded modules runs on it
};

// The first GPU. Its context is current for the thread between Device::Use's constructor and
// destructor; every call of the driver happens there.
class Device {
  public:
    // Shared by everybody in the process. Throws Failure with AWQE_UNSUPPORTED where there is no
    // usable GPU, with the reason.
    static std::shared_ptr<Device> shared();
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    class Use {
      public:
        explicit Use(const Device& device);
        ~Use();
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

      private:
        const Driver& driver_;
    };

    // For destructors: runs `work` with the context current, where that can still be had.
    template <class Work>
    void with_context(const Work& work) const noexcept {
        if (process_ != getpid() || driver_.cuCtxPushCurrent_v2(context_) != kSuccess) return;
        work();
        driver_.cuCtxPopCurrent_v2(nullptr);
    }

    const Driver& driver() const { return driver_; }
    const DeviceFacts& facts() const { return facts_; }
    // Where CPU and GPU share one memory, what the system has available: the driver would not count
    // what lies in the page cache.
    size_t free_bytes() const;

    // A kernel by its name in kernels/module.cu. `shared_bytes`: the most dynamic shared memory
    // that will be asked for.
    Function kernel(const char* name, size_t shared_bytes = 0) const;

  private:
    Device();
    const Driver& driver_;
    const int process_ = getpid();
    DeviceNumber number_ = 0;
    Context context_ = nullptr;
    ModuleHandle module_ = nullptr;
    DeviceFacts facts_;
};

// Device memory.
class Buffer {
  public:
    Buffer() = default;
    Buffer(std::shared_ptr<const Device> device, size_t bytes);
    ~Buffer();
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept;

    size_t bytes() const { return bytes_; }
    template <class T>
    T* as(size_t offset_bytes = 0) const {
        return reinterpret_cast<T*>(address_ + offset_bytes);
    }
    Address address() const { return address_; }

  private:
    std::shared_ptr<const Device> device_;
    Address address_ = 0;
    size_t bytes_ = 0;
};

// Host memory that the GPU copies to and from without a detour.
class PinnedBuffer {
  public:
    PinnedBuffer() = default;
    PinnedBuffer(std::shared_ptr<const Device> device, size_t bytes);
    ~PinnedBuffer();
    PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
    PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

  private:
    std::shared_ptr<const Device> device_;
    void* data_ = nullptr;
};

struct Grid {
    unsigned x, y = 1, z = 1;
};

// Launches kernels into one stream; on GPUs that can, each may begin while the one before ends.
class Launcher {
  public:
    Launcher(const Device& device, Stream stream)
        : device_(device), stream_(stream), programmatic_(device.facts().capability >= 90) {}

    Stream stream() const { return stream_; }

    template <class... Arguments>
    void operator()(Function function, Grid grid, unsigned threads, size_t shared_bytes,
                    Arguments... arguments) const {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
        launch(function, grid, threads, shared_bytes, pointers);
    }

  private:
    void launch(Function function, Grid grid, unsigned threads, size_t shared_bytes,
                void** arguments) const;

    const Device& device_;
    Stream stream_;
    bool programmatic_;
};

}  // namespace awqe::cuda
