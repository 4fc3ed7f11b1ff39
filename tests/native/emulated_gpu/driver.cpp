// A libcuda.so.1 for machines without a GPU: the entry points that native/cuda/driver.h opens, with
// their ABI, over the memory and a processor of the host. It computes what a GPU computes, so the
// bits can be compared; it is not meant to be fast.
//
// AWQE_EMULATED_GPU in the environment, read at every call, makes it another machine or a broken
// one; words separated by commas:
//   driver=N          the version that the driver tells
//   capability=N      10 * major + minor
//   memory=N          bytes of memory
//   integrated        CPU and GPU share one memory
//   registers         the driver registers read-only memory
//   page_tables       the GPU walks the CPU's
//   CALL=STATUS@N     the N-th call of CALL from now on returns STATUS, and so do all calls of it
//                     behind that one; N begins with 1
//   wrong=KERNEL@BIT  every launch of this kernel leaves one bit of what it writes wrong: bit BIT
//                     of the first four bytes that it changes
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "native/cuda/driver.h"
#include "tests/native/emulated_gpu/cta.h"
#include "tests/native/emulated_gpu/kernels.h"

namespace awqe::cuda {

struct StreamStruct {
    bool records = false;
    std::vector<std::function<void()>> recorded;
};
struct GraphStruct {
    std::vector<std::function<void()>> work;
};
struct GraphExecStruct {
    std::vector<std::function<void()>> work;
};

}  // namespace awqe::cuda

namespace awqe::emulated {
namespace {

using namespace awqe::cuda;

constexpr Status kInvalidValue = 1;
constexpr Status kInvalidImage = 200;
constexpr Status kNotFound = 500;
constexpr Status kAlreadyRegistered = 712;

std::mutex mutex;
std::string settings;
std::map<std::string, uint64_t> calls;  // since the settings changed

// The setting's text behind "word=", or NULL.
const char* setting(const char* word) {
    const char* const given = std::getenv("AWQE_EMULATED_GPU");
    const std::string text = given == nullptr ? "" : given;
    if (text != settings) {
        settings = text;
        calls.clear();
    }
    const size_t length = std::strlen(word);
    for (size_t at = 0; at < settings.size();) {
        const size_t end = std::min(settings.find(',', at), settings.size());
        if (settings.compare(at, length, word) == 0 &&
            (at + length == end || settings[at + length] == '=')) {
            return settings.c_str() + std::min(at + length + 1, end);
        }
        at = end + 1;
    }
    return nullptr;
}

uint64_t number(const char* word, uint64_t otherwise) {
    const char* const text = setting(word);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

Status status_of(const char* call) {
    const std::lock_guard<std::mutex> lock(mutex);
    const char* const text = setting(call);
    if (text == nullptr) return kSuccess;
    char* end;
    const long status = std::strtol(text, &end, 10);
    const uint64_t from = *end == '@' ? std::strtoull(end + 1, nullptr, 10) : 1;
    return ++calls[call] >= from ? static_cast<Status>(status) : kSuccess;
}

#define OR_FAIL(call) \
    if (const Status status = status_of(#call); status != kSuccess) return status

// The text behind "wrong=NAME@", or NULL.
const char* wrong_bit(const char* kernel) {
    const std::lock_guard<std::mutex> lock(mutex);
    const char* const text = setting("wrong");
    const size_t length = std::strlen(kernel);
    if (text == nullptr || std::strncmp(text, kernel, length) != 0 || text[length] != '@') {
        return nullptr;
    }
    return text + length + 1;
}

// Every allocation ends where a page ends that nobody may touch.
constexpr size_t kPage = 4096;
struct Allocation {
    void* mapping;
    size_t mapped;
    size_t bytes;
};
std::map<Address, Allocation> allocations;
size_t allocated = 0;

std::map<Address, size_t> registered;  // of the host's memory
std::atomic<int> open_handles{0};      // streams and events

bool shared_and_read_only(Address begin, Address end) {
    std::ifstream lines("/proc/self/maps");
    for (std::string line; std::getline(lines, line);) {
        unsigned long long from;
        unsigned long long to;
        char kind[5] = {};
        if (std::sscanf(line.c_str(), "%llx-%llx %4s", &from, &to, kind) != 3) continue;
        if (from <= begin && end <= to) return std::strcmp(kind, "r--s") == 0;
    }
    return false;
}

uint64_t memory_bytes() { return number("memory", uint64_t{4} << 30); }

// Whether these bytes are one allocation's.
bool inside(Address address, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto at = allocations.upper_bound(address);
    if (at == allocations.begin()) return false;
    --at;
    return address + bytes <= at->first + at->second.bytes;
}

void* host(Address address) { return reinterpret_cast<void*>(address); }

// Runs `work`, and then flips a bit of the first word that it has changed.
void run_wrongly(const std::function<void()>& work, unsigned bit) {
    std::map<Address, std::vector<unsigned char>> before;
    for (const auto& [address, allocation] : allocations) {
        const auto* const begin = static_cast<const unsigned char*>(host(address));
        before[address].assign(begin, begin + allocation.bytes);
    }
    work();
    for (const auto& [address, bytes] : before) {
        auto* const is = static_cast<unsigned char*>(host(address));
        for (size_t i = 0; i < bytes.size(); ++i) {
            if (is[i] == bytes[i]) continue;
            is[i / 4 * 4 + bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
            return;
        }
    }
}

// Now, or when the graph is launched that the stream records.
Status enqueue(Stream stream, std::function<void()> work) {
    if (stream != nullptr && stream->records) {
        stream->recorded.push_back(std::move(work));
    } else {
        work();
    }
    return kSuccess;
}

Status copy(Stream stream, void* to, const void* from, size_t bytes) {
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

}  // namespace
}  // namespace awqe::emulated

#pragma GCC visibility push(default)
extern "C" {

using namespace awqe::emulated;
using namespace awqe::cuda;

Status cuInit(unsigned) {
    OR_FAIL(cuInit);
    return kSuccess;
}
Status cuDriverGetVersion(int* version) {
    *version = static_cast<int>(number("driver", 12060));
    return kSuccess;
}
Status cuGetErrorName(Status status, const char** name) {
    static std::map<Status, std::string> names;
    const std::lock_guard<std::mutex> lock(mutex);
    *name = names.try_emplace(status, "CUDA_ERROR_" + std::to_string(status)).first->second.c_str();
    return kSuccess;
}
Status cuDeviceGetCount(int* count) {
    *count = static_cast<int>(number("devices", 1));
    return kSuccess;
}
Status cuDeviceGet(DeviceNumber* device, int which) {
    *device = which;
    return kSuccess;
}
Status cuDeviceGetName(char* name, int size, DeviceNumber) {
    std::snprintf(name, static_cast<size_t>(size), "Emulated GPU");
    return kSuccess;
}
Status cuDeviceTotalMem_v2(size_t* bytes, DeviceNumber) {
    *bytes = memory_bytes();
    return kSuccess;
}
Status cuDeviceGetAttribute(int* value, int which, DeviceNumber) {
    const int capability = static_cast<int>(number("capability", 90));
    switch (which) {
        case kAttributeMultiprocessors:
            *value = 4;
            break;
        case kAttributeIntegrated:
            *value = setting("integrated") != nullptr;
            break;
        case kAttributePageTables:
            *value = setting("page_tables") != nullptr;
            break;
        case kAttributeHostRegister:
        case kAttributeReadOnlyHostRegister:
            *value = setting("registers") != nullptr;
            break;
        case kAttributeCapabilityMajor:
            *value = capability / 10;
            break;
        case kAttributeCapabilityMinor:
            *value = capability % 10;
            break;
        case kAttributeSharedMemoryOptin:
            *value = 227 * 1024;
            break;
        default:
            *value = 0;
    }
    return kSuccess;
}
Status cuDevicePrimaryCtxRetain(Context* context, DeviceNumber) {
    OR_FAIL(cuDevicePrimaryCtxRetain);
    *context = reinterpret_cast<Context>(1);
    return kSuccess;
}
Status cuDevicePrimaryCtxRelease_v2(DeviceNumber) { return kSuccess; }
Status cuCtxPushCurrent_v2(Context) {
    OR_FAIL(cuCtxPushCurrent_v2);
    return kSuccess;
}
Status cuCtxPopCurrent_v2(Context*) { return kSuccess; }
Status cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    *total = memory_bytes();
    *free_bytes = *total - std::min<size_t>(allocated, *total);
    return kSuccess;
}
Status cuModuleLoadData(ModuleHandle* module, const void* image) {
    OR_FAIL(cuModuleLoadData);
    if (std::memcmp(image, "emulated", 8) != 0) return kInvalidImage;
    *module = reinterpret_cast<ModuleHandle>(1);
    return kSuccess;
}
Status cuModuleUnload(ModuleHandle) { return kSuccess; }
Status cuModuleGetFunction(Function* function, ModuleHandle, const char* name) {
    OR_FAIL(cuModuleGetFunction);
    const Kernel* const kernel = kernel_by_name(name);
    *function = reinterpret_cast<Function>(const_cast<Kernel*>(kernel));
    if (kernel == nullptr) std::fprintf(stderr, "emulated GPU: no kernel %s\n", name);
    return kernel == nullptr ? kNotFound : kSuccess;
}
Status cuFuncSetAttribute(Function, int, int) { return kSuccess; }
Status cuMemAlloc_v2(Address* address, size_t bytes) {
    OR_FAIL(cuMemAlloc_v2);
    const std::lock_guard<std::mutex> lock(mutex);
    if (allocated + bytes > memory_bytes()) return kOutOfMemory;
    const size_t whole = (bytes + kPage - 1) / kPage * kPage;
    void* const mapping = mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return kOutOfMemory;
    const size_t aligned = (bytes + 255) / 256 * 256;
    unsigned char* const begin = static_cast<unsigned char*>(mapping);
    mprotect(begin + whole, kPage, PROT_NONE);
    *address = reinterpret_cast<Address>(begin + whole - aligned);
    allocations[*address] = {mapping, whole + kPage, bytes};
    allocated += bytes;
    return kSuccess;
}
Status cuMemFree_v2(Address address) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto at = allocations.find(address);
    if (at == allocations.end()) return kInvalidValue;
    allocated -= at->second.bytes;
    munmap(at->second.mapping, at->second.mapped);
    allocations.erase(at);
    return kSuccess;
}
Status cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    OR_FAIL(cuMemHostAlloc);
    *address = std::malloc(bytes);
    return *address == nullptr ? kOutOfMemory : kSuccess;
}
Status cuMemFreeHost(void* address) {
    std::free(address);
    return kSuccess;
}
// As a driver does that was tried: read-only memory alone, and only a shared mapping of a file; no
// page twice.
Status cuMemHostRegister_v2(void* begin, size_t bytes, unsigned flags) {
    OR_FAIL(cuMemHostRegister_v2);
    const Address at = reinterpret_cast<Address>(begin);
    if (at % kPage != 0 || bytes == 0 || bytes % kPage != 0) return kInvalidValue;
    if (flags != (kRegisterReadOnly | kRegisterDeviceMap)) return kInvalidValue;
    if (!shared_and_read_only(at, at + bytes)) return kInvalidValue;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [first, size] : registered) {
        if (at < first + size && first < at + bytes) return kAlreadyRegistered;
    }
    registered[at] = bytes;
    return kSuccess;
}
Status cuMemHostUnregister(void* begin) {
    const std::lock_guard<std::mutex> lock(mutex);
    return registered.erase(reinterpret_cast<Address>(begin)) == 1 ? kSuccess : kInvalidValue;
}
Status cuMemHostGetDevicePointer_v2(Address* address, void* begin, unsigned) {
    OR_FAIL(cuMemHostGetDevicePointer_v2);
    const std::lock_guard<std::mutex> lock(mutex);
    *address = reinterpret_cast<Address>(begin);
    return registered.count(*address) == 1 ? kSuccess : kInvalidValue;
}
Status cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream stream) {
    OR_FAIL(cuMemcpyHtoDAsync_v2);
    return inside(to, bytes) ? copy(stream, host(to), from, bytes) : kInvalidValue;
}
Status cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream stream) {
    OR_FAIL(cuMemcpyDtoHAsync_v2);
    return inside(from, bytes) ? copy(stream, to, host(from), bytes) : kInvalidValue;
}
Status cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    OR_FAIL(cuMemcpyDtoH_v2);
    return inside(from, bytes) ? copy(nullptr, to, host(from), bytes) : kInvalidValue;
}
Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream stream) {
    if (!inside(to, bytes) || !inside(from, bytes)) return kInvalidValue;
    return copy(stream, host(to), host(from), bytes);
}
Status cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream stream) {
    if (!inside(to, bytes)) return kInvalidValue;
    return enqueue(stream, [=] { std::memset(host(to), value, bytes); });
}
Status cuStreamCreate(Stream* stream, unsigned) {
    OR_FAIL(cuStreamCreate);
    *stream = new StreamStruct;
    ++open_handles;
    return kSuccess;
}
Status cuStreamDestroy_v2(Stream stream) {
    delete stream;
    --open_handles;
    return kSuccess;
}
Status cuStreamSynchronize(Stream) {
    OR_FAIL(cuStreamSynchronize);
    return kSuccess;
}
Status cuStreamBeginCapture_v2(Stream stream, int) {
    stream->records = true;
    return kSuccess;
}
Status cuStreamEndCapture(Stream stream, Graph* graph) {
    *graph = new GraphStruct{std::move(stream->recorded)};
    stream->recorded.clear();
    stream->records = false;
    return kSuccess;
}
Status cuGraphInstantiateWithFlags(GraphExec* executable, Graph graph, unsigned long long) {
    OR_FAIL(cuGraphInstantiateWithFlags);
    *executable = new GraphExecStruct{graph->work};
    return kSuccess;
}
Status cuGraphLaunch(GraphExec executable, Stream) {
    OR_FAIL(cuGraphLaunch);
    for (const std::function<void()>& work : executable->work) work();
    return kSuccess;
}
Status cuGraphDestroy(Graph graph) {
    delete graph;
    return kSuccess;
}
Status cuGraphExecDestroy(GraphExec executable) {
    delete executable;
    return kSuccess;
}
Status cuLaunchKernelEx(const LaunchConfig* config, Function function, void** arguments, void**) {
    OR_FAIL(cuLaunchKernelEx);
    const Kernel* const kernel = reinterpret_cast<const Kernel*>(function);
    const LaunchConfig c = *config;
    const std::function<void()> body = kernel->bind(arguments);
    const std::function<void()> work = [=] {
        run_grid({c.grid_x, c.grid_y, c.grid_z}, c.block_x, c.shared_bytes, body);
    };
    if (const char* const wrong = wrong_bit(kernel->name); wrong != nullptr) {
        const unsigned bit = static_cast<unsigned>(std::strtoul(wrong, nullptr, 10));
        return enqueue(c.stream, [=] { run_wrongly(work, bit); });
    }
    return enqueue(c.stream, work);
}
Status cuEventCreate(Event* event, unsigned) {
    OR_FAIL(cuEventCreate);
    *event = reinterpret_cast<Event>(1);
    ++open_handles;
    return kSuccess;
}
Status cuEventRecord(Event, Stream) { return kSuccess; }
Status cuEventSynchronize(Event) {
    OR_FAIL(cuEventSynchronize);
    return kSuccess;
}
Status cuEventElapsedTime(float* milliseconds, Event, Event) {
    *milliseconds = 0;
    return kSuccess;
}
Status cuEventDestroy_v2(Event) {
    --open_handles;
    return kSuccess;
}

// Beside the driver's entry points, for tests: streams and events that are open; names of all
// kernels, NULL behind the last one.
int emulated_open_handles() { return open_handles; }
const char* emulated_kernel(size_t index) { return kernel_name(index); }

}  // extern "C"
#pragma GCC visibility pop
