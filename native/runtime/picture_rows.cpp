// Keys and values of a picture; see picture_rows.h.
#include "native/runtime/picture_rows.h"

#include "native/kernels/scalar/half.h"

namespace awqe {

size_t PictureRows::bytes(const CrossArchitecture& cross, size_t count) {
    Arena counting;
    counting.take<uint16_t>(cross.row_size() * count);
    return counting.used();
}

PictureRows::PictureRows(const CrossArchitecture& cross, const float* rows, size_t count)
    : count_(count),
      heads_(cross.form.heads),
      head_size_(cross.form.head_size),
      pages_(bytes(cross, count), PageSize::kSmall) {
    auto* const half = reinterpret_cast<uint16_t*>(pages_.data());
    const size_t d = head_size_;
    const size_t parts = cross.row_size() / d;  // of a row: block by block, keys, values, heads
    for (size_t t = 0; t < count; ++t) {
        for (size_t part = 0; part < parts; ++part) {
            const float* const from = rows + (t * parts + part) * d;
            uint16_t* const to = half + (part * count + t) * d;
            for (size_t i = 0; i < d; ++i) to[i] = float_to_half(from[i]);
        }
    }
}

CacheF16 PictureRows::head(size_t block, size_t head) const {
    const auto* const half = reinterpret_cast<const uint16_t*>(pages_.data());
    const size_t size = count_ * head_size_;
    const uint16_t* const keys = half + (block * 2 * heads_ + head) * size;
    return {keys, keys + heads_ * size, head_size_, count_};  // a ring that no position leaves
}

}  // namespace awqe
