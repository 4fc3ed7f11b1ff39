// Context, module, memory and launches of one GPU; see device.h.
#include "native/cuda/device.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <mutex>

#include "native/cuda/modules.h"
#include "native/failure/failure.h"

namespace awqe::cuda {
namespace {

const Driver& usable_driver() {
    std::string problem;
    const Driver* const found = driver(&problem);
    if (found == nullptr) fail(AWQE_UNSUPPORTED, "%s", problem.c_str());
    return *found;
}

int attribute(const Driver& d, DeviceNumber number, int which) {
    int value = 0;
    check(d.cuDeviceGetAttribute(&value, which, number), "tell what it can do");
    return value;
}

DeviceFacts facts_of(const Driver& d, DeviceNumber number) {
    DeviceFacts facts = {};
    char name[128] = {};
    check(d.cuDeviceGetName(name, sizeof(name) - 1, number), "tell its name");
    facts.name = name;
    facts.capability = 10 * attribute(d, number, kAttributeCapabilityMajor) +
                       attribute(d, number, kAttributeCapabilityMinor);
    facts.multiprocessors = attribute(d, number, kAttributeMultiprocessors);
    facts.integrated = attribute(d, number, kAttributeIntegrated) != 0;
    facts.shared_bytes = attribute(d, number, kAttributeSharedMemoryOptin);
    facts.page_tables = attribute(d, number, kAttributePageTables) != 0;
    facts.host_pointers = attribute(d, number, kAttributeHostPointers) != 0;
    facts.registers_mapping = attribute(d, number, kAttributeHostRegister) != 0 &&
                              attribute(d, number, kAttributeReadOnlyHostRegister) != 0;
    check(d.cuDeviceTotalMem_v2(&facts.memory_bytes, number), "tell its memory");
    return facts;
}

// MemAvailable of /proc/meminfo; 0 if it says nothing.
size_t available_bytes() {
    std::ifstream lines("/proc/meminfo");
    for (std::string line; std::getline(lines, line);) {
        unsigned long long kilobytes;
        if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kilobytes) == 1) {
            return static_cast<size_t>(kilobytes) * 1024;
        }
    }
    return 0;
}

}  // namespace

Device::Device() : driver_(usable_driver()) {
    check(driver_.cuDeviceGet(&number_, 0), "be found");
    facts_ = facts_of(driver_, number_);
    const Module* const module = module_for(facts_.capability);
    if (module == nullptr) {
        fail(AWQE_UNSUPPORTED,
             "the GPU %s has compute capability %d.%d, and this library has code for %s",
             facts_.name.c_str(), facts_.capability / 10, facts_.capability % 10,
             module_names().c_str());
    }
    facts_.module = module->name;
    check(driver_.cuDevicePrimaryCtxRetain(&context_, number_), "open a context");
    try {
        const Use use(*this);
        check(driver_.cuModuleLoadData(&module_, module->bytes), "load the kernels");
    } catch (...) {
        driver_.cuDevicePrimaryCtxRelease_v2(number_);
        throw;
    }
}

Device::~Device() {
    with_context([&] { driver_.cuModuleUnload(module_); });
    if (process_ == getpid()) driver_.cuDevicePrimaryCtxRelease_v2(number_);
}

std::shared_ptr<Device> Device::shared() {
    static std::mutex mutex;
    static std::weak_ptr<Device> kept;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Device> device = kept.lock();
    if (device == nullptr) {
        device = std::shared_ptr<Device>(new Device());
        kept = device;
    }
    return device;
}

Device::Use::Use(const Device& device) : driver_(device.driver_) {
    check(driver_.cuCtxPushCurrent_v2(device.context_), "open its context");
}

Device::Use::~Use() { driver_.cuCtxPopCurrent_v2(nullptr); }

size_t Device::free_bytes() const {
    size_t free_bytes = 0;
    size_t total = 0;
    check(driver_.cuMemGetInfo_v2(&free_bytes, &total), "tell its free memory");
    return facts_.integrated ? std::min(total, std::max(free_bytes, available_bytes()))
                             : free_bytes;
}

Function Device::kernel(const char* name, size_t shared_bytes) const {
    Function function = nullptr;
    check(driver_.cuModuleGetFunction(&function, module_, name), "find a kernel");
    if (shared_bytes > 48 * 1024) {  // what a kernel has without asking
        check(driver_.cuFuncSetAttribute(function, kFunctionDynamicSharedMemory,
                                         static_cast<int>(shared_bytes)),
              "give a kernel its shared memory");
    }
    return function;
}

Buffer::Buffer(std::shared_ptr<const Device> device, size_t bytes)
    : device_(std::move(device)), bytes_(bytes) {
    if (bytes == 0) return;
    check(device_->driver().cuMemAlloc_v2(&address_, bytes), "hold the model and its cache");
}

Buffer::~Buffer() {
    if (address_ == 0) return;
    device_->driver().cuMemFree_v2(address_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

PinnedBuffer::PinnedBuffer(std::shared_ptr<const Device> device, size_t bytes)
    : device_(std::move(device)) {
    check(device_->driver().cuMemHostAlloc(&data_, bytes, 0), "share memory with the host");
}

PinnedBuffer::~PinnedBuffer() {
    if (data_ != nullptr) device_->driver().cuMemFreeHost(data_);
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    return *this;
}

void Launcher::launch(Function function, Grid grid, unsigned threads, size_t shared_bytes,
                      void** arguments) const {
    LaunchAttribute attribute = {};
    attribute.id = kLaunchProgrammatic;
    attribute.value.programmatic_serialization = 1;
    const LaunchConfig config = {grid.x,
                                 grid.y,
                                 grid.z,
                                 threads,
                                 1,
                                 1,
                                 static_cast<unsigned>(shared_bytes),
                                 stream_,
                                 &attribute,
                                 programmatic_ ? 1u : 0u};
    check(device_.driver().cuLaunchKernelEx(&config, function, arguments, nullptr),
          "start a kernel");
}

}  // namespace awqe::cuda
