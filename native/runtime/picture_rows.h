// A picture that gated blocks look at: the keys and values of its rows in every block, as the cache
// of a decoder holds them. Owns their memory; computed once, when a session is shown the picture.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/kernels/attention/attention_f16.h"
#include "native/runtime/arena.h"
#include "native/runtime/cross_architecture.h"

namespace awqe {

class PictureRows {
  public:
    // rows: float [count, CrossArchitecture::row_size()], finite. Throws Failure with
    // AWQE_OUT_OF_MEMORY.
    PictureRows(const CrossArchitecture& cross, const float* rows, size_t count);

    static size_t bytes(const CrossArchitecture& cross, size_t count);

    size_t count() const { return count_; }
    // Of one head of the block with that number, counted from 0.
    CacheF16 head(size_t block, size_t head) const;

  private:
    const size_t count_;
    const size_t heads_;
    const size_t head_size_;
    const PageRegion pages_;  // half [blocks, keys and values, heads, count, head_size]
};

}  // namespace awqe
