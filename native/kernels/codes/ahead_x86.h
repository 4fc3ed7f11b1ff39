// Asks for weights before they are read, on x86 CPUs. Owns the distance, the order and the cache;
// the walks over blocks say how much they read. Internal linkage, as everything in kernel files.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "native/format/layouts.h"

namespace awqe {
namespace {

// Asks for the lines of `bytes` bytes, for the second cache: a Zen 4 has too few places for lines
// on their way to the first one, and gave a third less.
inline void ask_for(const uint8_t* begin, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) {
        _mm_prefetch((const char*)begin + line, _MM_HINT_T1);
    }
}

// The lines some way ahead of the reading, in the order of their addresses, whatever plane of a
// block is read. Two planes are two streams, and asked for plane by plane 3, 5 and 6 bits came at
// half of the rate at which memory gives one.
class Ahead {
  public:
    // Ahead of the second plane too, where there is one.
    inline Ahead(const PackedMatrix& w, const uint8_t* block)
        : next_(block + kBytes + (w.high_plane_offset < w.block_bytes ? w.high_plane_offset : 0)) {}

    // The next `bytes` of the stream are about to be read.
    inline void ask(size_t bytes) {
        ask_for(next_, bytes);
        next_ += bytes;
    }

  private:
    static constexpr size_t kBytes = 8192;
    const uint8_t* next_;
};

}  // namespace
}  // namespace awqe
