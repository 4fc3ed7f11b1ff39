// Some more rows of activations than the products of up to 8 rows take, in passes of these. Owns
// the order of the passes; the caller's functions compute one. Internal linkage, as everything in
// kernel files.
#pragma once

#include <stddef.h>

#include "native/format/layouts.h"
#include "native/kernels/gemm/gemm_ug.h"

namespace awqe {
namespace {

constexpr size_t kPassBytes = 131072;  // of weights that meet every pass, from the second cache

// The rows of x from `token` on.
inline QuantizedRows rows_from(const QuantizedRows& x, size_t token) {
    QuantizedRows rest = x;
    rest.codes += token * x.code_stride;
    rest.scales += token * x.group_stride;
    rest.sums += token * x.group_stride;
    return rest;
}

// The rows of x from the first one on, up to `most` at a time, for so many rows of the matrix that
// their weights stay in the cache from pass to pass.
//
// one(x, y, begin, end) computes one row of x, few(x, count, y, begin, end) 2 ... most of them.
template <class One, class Few>
inline void multiply_in_passes(const PackedMatrix& w, const QuantizedRows& x, size_t tokens,
                               size_t most, float* y, size_t y_stride, size_t row_begin,
                               size_t row_end, const One& one, const Few& few) {
    const size_t blocks = kPassBytes / w.block_bytes;
    const size_t stretch = (blocks < 2 ? 2 : blocks / 2 * 2) * kBlockRows;
    for (size_t row = row_begin; row < row_end; row += stretch) {
        const size_t end = row_end - row < stretch ? row_end : row + stretch;
        for (size_t token = 0; token < tokens; token += most) {
            const size_t count = tokens - token < most ? tokens - token : most;
            const QuantizedRows some = rows_from(x, token);
            float* const out = y + token * y_stride;
            if (count == 1) {
                one(some, out, row, end);
            } else {
                few(some, count, out, row, end);
            }
        }
    }
}

}  // namespace
}  // namespace awqe
