// Parts of a read-only file mapping where the GPU of a board reads them, without a copy: CPU and
// GPU share one memory there. Owns their registration with the driver; knows no weights.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "native/cuda/device.h"

namespace awqe::cuda {

// Some bytes of a mapping. Registered are only shared, read-only mappings of files: a driver has
// been seen to hang at a private one.
struct HostRange {
    const unsigned char* begin;
    size_t bytes;
};

class InPlace {
  public:
    InPlace() = default;
    ~InPlace();
    InPlace(InPlace&& other) noexcept { *this = std::move(other); }
    InPlace& operator=(InPlace&& other) noexcept;

    // All of `ranges`, or nothing: false, and the reason in a few words. Ranges may touch and
    // overlap; their pages stay in memory for as long as the object lives. The context is current.
    static bool take(std::shared_ptr<const Device> device, std::vector<HostRange> ranges,
                     InPlace* taken, std::string* reason);

    // Of a byte of a range.
    Address address(const void* host) const;

  private:
    // Whole pages.
    struct Piece {
        unsigned char* begin;
        size_t bytes;
        Address address;
        bool registered;
    };

    std::shared_ptr<const Device> device_;
    std::vector<Piece> pieces_;  // ascending
};

// Whether `device` reads mappings in place: tried with a page of this program's own file. The
// context is current.
bool reads_in_place(const std::shared_ptr<const Device>& device, std::string* reason);

}  // namespace awqe::cuda
