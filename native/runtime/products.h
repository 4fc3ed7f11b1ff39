// Products of packed matrices with a block of rows, as the layers of a decoder and of a vision
// tower both consist of them: rows are quantised, then threads divide a matrix's rows. Owns this
// division and the arrays of quantised rows; the arithmetic is the kernels' (native/ARITHMETIC.md,
// section 3). Letters as in step.h, and every member of the team runs every function here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/tensors.h"
#include "native/runtime/thread_pool.h"

namespace awqe {

// Who computes with m rows, and where their quantised inputs lie.
struct Working {
    const KernelTable& kernels;
    Team& team;
    const QuantizedRows&
        block_input;                 // m rows of the widest input: what a matrix is multiplied with
    const QuantizedRows& own_input;  // the same for one row, one per thread
    size_t m;
};

inline size_t blocks_of(const PackedMatrix& w) { return (w.rows + kBlockRows - 1) / kBlockRows; }

// Blocks of rows that one thread takes at a time: for several tokens the 32 rows of a register
// tile.
inline size_t grain_of(const Working& step) { return step.m == 1 ? 1 : 8; }

// ---- inputs of a matrix -------------------------------------------------------------------------

// The buffer's memory as rows of k inputs in groups of g, beginning at `row`.
inline QuantizedRows rows_of(const QuantizedRows& buffer, size_t row, size_t k, size_t g) {
    return {buffer.codes + row * buffer.code_stride, buffer.scales + row * buffer.group_stride,
            buffer.sums + row * buffer.group_stride, round_up(k, 64), (k + g - 1) / g};
}

// Quantises the rows that make_row(t) returns, float [k] each: int8 [m, k].
// A single row is quantised by every member for itself: that takes less time than one member doing
// it while the others wait.
template <class MakeRow>
QuantizedRows quantize(const Working& step, size_t k, size_t g, const MakeRow& make_row) {
    if (step.m == 1) {
        const QuantizedRows own = rows_of(step.own_input, step.team.index(), k, g);
        step.kernels.quantize_act(make_row(0), k, g, &own, 0);
        return own;
    }
    const QuantizedRows shared = rows_of(step.block_input, 0, k, g);
    step.team.share(step.m, 1, [&](size_t begin, size_t end) {
        for (size_t t = begin; t < end; ++t)
            step.kernels.quantize_act(make_row(t), k, g, &shared, t);
    });
    return shared;
}

// ---- products -----------------------------------------------------------------------------------

// y[t][n] = W x[t] + bias, for the blocks of rows [first_block, end_block). y: float [m, y_stride]
void multiply(const Working& step, const Linear& linear, const QuantizedRows& x, float* y,
              size_t y_stride, size_t first_block, size_t end_block);

// Matrices with one input, divided as if their rows followed each other.
struct Product {
    const Linear& linear;
    float* y;  // [m, n]
};
void multiply_all(const Working& step, std::initializer_list<Product> products,
                  const QuantizedRows& x);

// ---- memory -------------------------------------------------------------------------------------

// The widest input and the most groups of any matrix.
struct InputSizes {
    size_t width = 0;
    size_t groups = 0;

    void add(const Linear& linear) {
        width = std::max<size_t>(width, linear.weight.columns);
        groups = std::max<size_t>(groups, linear.weight.groups);
    }
};

// An array of m quantised rows of `width` inputs in at most `groups` groups.
QuantizedRows take_rows(Arena& arena, size_t m, size_t width, size_t groups);

}  // namespace awqe
