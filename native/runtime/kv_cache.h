// Keys and values of every position, as fp16: half [layer][kv_head][position][head_size], once for
// keys and once for values. A head's positions follow each other, so that attention, which walks
// one head from the first position to the last, reads one sequential stream; interleaving heads
// would hand it head_size halves out of every kv_heads * head_size. Owns the memory, which becomes
// resident position by position; knows nothing about what is valid.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/runtime/arena.h"
#include "native/runtime/model.h"

namespace awqe {

class KvCache {
  public:
    KvCache(const Architecture& a, size_t positions)
        : layers_(a.layers),
          kv_heads_(a.kv_heads),
          head_size_(a.head_size),
          positions_(positions),
          pages_(bytes(a, positions), PageSize::kSmall) {}

    static size_t bytes(const Architecture& a, size_t positions) {
        return 2 * sizeof(uint16_t) * a.layers * a.kv_heads * positions * a.head_size;
    }

    // half [positions, head_size]
    uint16_t* keys(size_t layer, size_t head) const { return stream(layer, head); }
    uint16_t* values(size_t layer, size_t head) const { return stream(layers_ + layer, head); }
    size_t stride() const { return head_size_; }  // halves from one position to the next

  private:
    size_t layers_;
    size_t kv_heads_;
    size_t head_size_;
    size_t positions_;
    PageRegion pages_;

    uint16_t* stream(size_t layer, size_t head) const {
        return reinterpret_cast<uint16_t*>(pages_.data()) +
               (layer * kv_heads_ + head) * positions_ * head_size_;
    }
};

}  // namespace awqe
