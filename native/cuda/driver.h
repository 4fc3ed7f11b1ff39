// The CUDA driver, opened when it is first asked for: nothing is linked, so one library runs with
// and without a GPU. Owns the declarations of the driver API that are used, and the sentence for
// every way in which there is no usable driver. Knows no kernel and no model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace awqe::cuda {

// The driver API's types, by their ABI.
using Status = int;
using DeviceNumber = int;
using Context = struct ContextStruct*;
using ModuleHandle = struct ModuleStruct*;
using Function = struct FunctionStruct*;
using Stream = struct StreamStruct*;
using Event = struct EventStruct*;
using Graph = struct GraphStruct*;
using GraphExec = struct GraphExecStruct*;
using Address = uint64_t;  // of device memory

constexpr Status kSuccess = 0;
constexpr Status kOutOfMemory = 2;

// CUdevice_attribute.
constexpr int kAttributeMultiprocessors = 16;
constexpr int kAttributeIntegrated = 18;
constexpr int kAttributeCapabilityMajor = 75;
constexpr int kAttributeCapabilityMinor = 76;
constexpr int kAttributeHostPointers = 91;  // of registered memory are the GPU's too
constexpr int kAttributeSharedMemoryOptin = 97;
constexpr int kAttributeHostRegister = 99;
constexpr int kAttributePageTables = 100;  // the GPU walks the CPU's
constexpr int kAttributeReadOnlyHostRegister = 113;

// CUfunction_attribute.
constexpr int kFunctionDynamicSharedMemory = 8;

// CU_MEMHOSTREGISTER_*.
constexpr unsigned kRegisterDeviceMap = 2;
constexpr unsigned kRegisterReadOnly = 8;

// CUlaunchAttribute, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION.
struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int programmatic_serialization;
    } value;
};
constexpr int kLaunchProgrammatic = 6;

// CUlaunchConfig.
struct LaunchConfig {
    unsigned grid_x, grid_y, grid_z;
    unsigned block_x, block_y, block_z;
    unsigned shared_bytes;
    Stream stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};

// The 64-bit memory functions are exported under _v2 names; the plain names are an older ABI.
#define AWQE_CUDA_FUNCTIONS(X)                                            \
    X(cuInit, unsigned)                                                   \
    X(cuDriverGetVersion, int*)                                           \
    X(cuGetErrorName, Status, const char**)                               \
    X(cuDeviceGetCount, int*)                                             \
    X(cuDeviceGet, DeviceNumber*, int)                                    \
    X(cuDeviceGetName, char*, int, DeviceNumber)                          \
    X(cuDeviceTotalMem_v2, size_t*, DeviceNumber)                         \
    X(cuDeviceGetAttribute, int*, int, DeviceNumber)                      \
    X(cuDevicePrimaryCtxRetain, Context*, DeviceNumber)                   \
    X(cuDevicePrimaryCtxRelease_v2, DeviceNumber)                         \
    X(cuCtxPushCurrent_v2, Context)                                       \
    X(cuCtxPopCurrent_v2, Context*)                                       \
    X(cuMemGetInfo_v2, size_t*, size_t*)                                  \
    X(cuModuleLoadData, ModuleHandle*, const void*)                       \
    X(cuModuleUnload, ModuleHandle)                                       \
    X(cuModuleGetFunction, Function*, ModuleHandle, const char*)          \
    X(cuFuncSetAttribute, Function, int, int)                             \
    X(cuMemAlloc_v2, Address*, size_t)                                    \
    X(cuMemFree_v2, Address)                                              \
    X(cuMemHostAlloc, void**, size_t, unsigned)                           \
    X(cuMemFreeHost, void*)                                               \
    X(cuMemHostRegister_v2, void*, size_t, unsigned)                      \
    X(cuMemHostUnregister, void*)                                         \
    X(cuMemHostGetDevicePointer_v2, Address*, void*, unsigned)            \
    X(cuMemcpyHtoDAsync_v2, Address, const void*, size_t, Stream)         \
    X(cuMemcpyDtoH_v2, void*, Address, size_t)                            \
    X(cuMemcpyDtoHAsync_v2, void*, Address, size_t, Stream)               \
    X(cuMemcpyDtoDAsync_v2, Address, Address, size_t, Stream)             \
    X(cuMemsetD8Async, Address, unsigned char, size_t, Stream)            \
    X(cuStreamCreate, Stream*, unsigned)                                  \
    X(cuStreamDestroy_v2, Stream)                                         \
    X(cuStreamSynchronize, Stream)                                        \
    X(cuStreamBeginCapture_v2, Stream, int)                               \
    X(cuStreamEndCapture, Stream, Graph*)                                 \
    X(cuGraphInstantiateWithFlags, GraphExec*, Graph, unsigned long long) \
    X(cuGraphLaunch, GraphExec, Stream)                                   \
    X(cuGraphDestroy, Graph)                                              \
    X(cuGraphExecDestroy, GraphExec)                                      \
    X(cuEventCreate, Event*, unsigned)                                    \
    X(cuEventRecord, Event, Stream)                                       \
    X(cuEventSynchronize, Event)                                          \
    X(cuEventElapsedTime, float*, Event, Event)                           \
    X(cuEventDestroy_v2, Event)

// Entry points that an older driver lacks: 11.8 for launches with attributes.
#define AWQE_CUDA_OPTIONAL_FUNCTIONS(X) \
    X(cuLaunchKernelEx, const LaunchConfig*, Function, void**, void**)

struct Driver {
#define AWQE_CUDA_DECLARE(name, ...) Status (*name)(__VA_ARGS__);
    AWQE_CUDA_FUNCTIONS(AWQE_CUDA_DECLARE)
    AWQE_CUDA_OPTIONAL_FUNCTIONS(AWQE_CUDA_DECLARE)
#undef AWQE_CUDA_DECLARE
    int version;  // 1000 * major + 10 * minor
};

// What the driver has opened for somebody: closed with its owner.
template <class Handle, Status (*Driver::*kClose)(Handle)>
class Owned {
  public:
    Owned() = default;
    Owned(const Driver& driver, Handle handle) : driver_(&driver), handle_(handle) {}
    ~Owned() {
        if (handle_ != nullptr) (driver_->*kClose)(handle_);
    }
    Owned(Owned&& other) noexcept { *this = std::move(other); }
    Owned& operator=(Owned&& other) noexcept {
        std::swap(driver_, other.driver_);
        std::swap(handle_, other.handle_);
        return *this;
    }
    Handle get() const { return handle_; }

  private:
    const Driver* driver_ = nullptr;
    Handle handle_ = nullptr;
};
using OwnedStream = Owned<Stream, &Driver::cuStreamDestroy_v2>;
using OwnedEvent = Owned<Event, &Driver::cuEventDestroy_v2>;

// The driver, loaded at the first call and for as long as the process lives. NULL where there is
// none, and *problem says why in one sentence.
const Driver* driver(std::string* problem);

// Its name, for a sentence.
std::string error_name(Status status);

// Throws Failure where `status` is not success: AWQE_OUT_OF_MEMORY for want of memory, otherwise
// AWQE_UNSUPPORTED (the GPU cannot do this) or AWQE_DEVICE_LOST. `what` completes the sentence
// "the GPU failed to ...".
void check(Status status, const char* what);

// A stream that is not ordered with others, and an event in one. Throw Failure.
OwnedStream open_stream(const Driver& driver);
OwnedEvent open_event(const Driver& driver, bool timed);

}  // namespace awqe::cuda
