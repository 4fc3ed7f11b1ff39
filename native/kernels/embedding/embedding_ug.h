// The contract of the embedding: one row of a packed matrix as floats, float(code - zero_point) *
// float(scale).
#pragma once

#include <stddef.h>

#include "native/format/layouts.h"

namespace awqe {

// out: float [w->columns]
using EmbeddingFunction = void (*)(const PackedMatrix* w, size_t row, float* out);

}  // namespace awqe
