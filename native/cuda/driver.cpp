// Opening the driver and naming its errors; see driver.h.
#include "native/cuda/driver.h"

#include <dlfcn.h>

#include <mutex>

#include "native/failure/failure.h"

namespace awqe::cuda {
namespace {

// Of a driver that reads what NVRTC 12 writes; JetPack 5 has 11.4.
constexpr int kOldestDriver = 12000;

struct Loaded {
    Driver functions = {};
    bool usable = false;
    std::string problem;
};

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Loaded load() {
    Loaded loaded;
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        loaded.problem = "no NVIDIA driver is installed (libcuda.so.1 was not found)";
        return loaded;
    }
    const char* missing = nullptr;
#define AWQE_CUDA_RESOLVE(name, ...)                                              \
    loaded.functions.name =                                                       \
        reinterpret_cast<decltype(loaded.functions.name)>(dlsym(library, #name)); \
    if (loaded.functions.name == nullptr) missing = #name;
    AWQE_CUDA_OPTIONAL_FUNCTIONS(AWQE_CUDA_RESOLVE)
    missing = nullptr;
    AWQE_CUDA_FUNCTIONS(AWQE_CUDA_RESOLVE)
#undef AWQE_CUDA_RESOLVE
    Driver& d = loaded.functions;
    if (d.cuDriverGetVersion != nullptr) d.cuDriverGetVersion(&d.version);
    if (d.version != 0 && d.version < kOldestDriver) {
        loaded.problem = "the NVIDIA driver supports CUDA " + version_text(d.version) +
                         ", needed is " + version_text(kOldestDriver) + " (JetPack 6) or newer";
        return loaded;
    }
    if (missing != nullptr || d.cuLaunchKernelEx == nullptr) {
        loaded.problem = std::string("the NVIDIA driver has no ") +
                         (missing != nullptr ? missing : "cuLaunchKernelEx") +
                         ": install a newer one";
        return loaded;
    }
    const Status status = d.cuInit(0);
    int count = 0;
    if (status == kSuccess) d.cuDeviceGetCount(&count);
    if (status != kSuccess || count == 0) {
        const char* name = nullptr;
        if (status != kSuccess) d.cuGetErrorName(status, &name);
        loaded.problem = std::string("the NVIDIA driver finds no usable GPU") +
                         (name != nullptr ? std::string(" (") + name + ")" : std::string());
        return loaded;
    }
    loaded.usable = true;
    return loaded;
}

const Loaded& loaded_driver() {
    static const Loaded loaded = load();
    return loaded;
}

}  // namespace

const Driver* driver(std::string* problem) {
    const Loaded& loaded = loaded_driver();
    if (loaded.usable) return &loaded.functions;
    if (problem != nullptr) *problem = loaded.problem;
    return nullptr;
}

std::string error_name(Status status) {
    const char* name = nullptr;
    loaded_driver().functions.cuGetErrorName(status, &name);
    return name == nullptr ? "an unknown error" : name;
}

void check(Status status, const char* what) {
    if (status == kSuccess) return;
    const std::string name = error_name(status);
    switch (status) {
        case kOutOfMemory:
            fail(AWQE_OUT_OF_MEMORY, "the GPU has no memory left to %s", what);
        case 200:  // invalid image
        case 209:  // no binary for this GPU
        case 222:  // PTX of a newer compiler
            fail(AWQE_UNSUPPORTED, "the driver cannot %s (%s): update it, or say --device cpu",
                 what, name.c_str());
        default:
            fail(AWQE_DEVICE_LOST,
                 "the GPU failed to %s (%s): open the model again, or say --device cpu", what,
                 name.c_str());
    }
}

OwnedStream open_stream(const Driver& d) {
    Stream stream = nullptr;
    check(d.cuStreamCreate(&stream, 1), "open a stream");  // 1: not ordered with other streams
    return {d, stream};
}

OwnedEvent open_event(const Driver& d, bool timed) {
    Event event = nullptr;
    check(d.cuEventCreate(&event, timed ? 0 : 2), "open an event");  // 2: nobody asks for times
    return {d, event};
}

}  // namespace awqe::cuda
