// Registering pages of a mapping; see in_place.h. Which ways there are stands in take().
#include "native/cuda/in_place.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

namespace awqe::cuda {
namespace {

uintptr_t page_bytes() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

// Whole pages that hold the ranges, each page once.
std::vector<HostRange> pages_of(std::vector<HostRange> ranges) {
    const uintptr_t page = page_bytes();
    std::sort(ranges.begin(), ranges.end(),
              [](const HostRange& a, const HostRange& b) { return a.begin < b.begin; });
    std::vector<HostRange> pages;
    for (const HostRange& range : ranges) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(range.begin);
        const unsigned char* const begin = range.begin - at % page;
        const size_t bytes = (range.bytes + at % page + page - 1) / page * page;
        if (!pages.empty() && begin <= pages.back().begin + pages.back().bytes) {
            HostRange& last = pages.back();
            last.bytes = std::max(last.bytes, static_cast<size_t>(begin - last.begin) + bytes);
        } else {
            pages.push_back({begin, bytes});
        }
    }
    return pages;
}

}  // namespace

InPlace& InPlace::operator=(InPlace&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(pieces_, other.pieces_);
    return *this;
}

InPlace::~InPlace() {
    for (const Piece& piece : pieces_) {
        if (piece.registered) device_->driver().cuMemHostUnregister(piece.begin);
    }
}

bool InPlace::take(std::shared_ptr<const Device> device, std::vector<HostRange> ranges,
                   InPlace* taken, std::string* reason) {
    const DeviceFacts& facts = device->facts();
    const Driver& d = device->driver();
    if (!facts.page_tables && !facts.registers_mapping) {
        *reason = "its driver registers no read-only memory";
        return false;
    }
    InPlace made;
    made.device_ = device;
    for (const HostRange& range : pages_of(std::move(ranges))) {
        unsigned char* const begin = const_cast<unsigned char*>(range.begin);
        // Loaded ahead: the driver would ask for one page after the other.
        madvise(begin, range.bytes, MADV_WILLNEED);
        Piece piece = {begin, range.bytes, reinterpret_cast<Address>(begin), false};
        // A GPU that walks the CPU's page tables needs to be told nothing.
        if (!facts.page_tables) {
            Status status =
                d.cuMemHostRegister_v2(begin, range.bytes, kRegisterReadOnly | kRegisterDeviceMap);
            if (status == kSuccess) {
                piece.registered = true;
                made.pieces_.push_back(piece);
                if (!facts.host_pointers) {
                    status = d.cuMemHostGetDevicePointer_v2(&made.pieces_.back().address, begin, 0);
                }
            }
            if (status != kSuccess) {
                *reason = "its driver refuses to register the file (" + error_name(status) + ")";
                return false;
            }
            continue;
        }
        made.pieces_.push_back(piece);
    }
    *taken = std::move(made);
    return true;
}

Address InPlace::address(const void* host) const {
    const unsigned char* const at = static_cast<const unsigned char*>(host);
    const auto behind = std::upper_bound(
        pieces_.begin(), pieces_.end(), at,
        [](const unsigned char* p, const Piece& piece) { return p < piece.begin; });
    const Piece& piece = *std::prev(behind);
    return piece.address + static_cast<Address>(at - piece.begin);
}

bool reads_in_place(const std::shared_ptr<const Device>& device, std::string* reason) {
    const size_t bytes = page_bytes();
    const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    void* const page = file < 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (page == MAP_FAILED) {
        *reason = "it could not be tried";
        return false;
    }
    InPlace taken;
    const bool works =
        InPlace::take(device, {{static_cast<const unsigned char*>(page), bytes}}, &taken, reason);
    taken = InPlace();
    munmap(page, bytes);
    return works;
}

}  // namespace awqe::cuda
