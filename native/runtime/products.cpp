// Products and the arrays of their inputs; see products.h.
#include "native/runtime/products.h"

namespace awqe {

void multiply(const Working& step, const Linear& linear, const QuantizedRows& x, float* y,
              size_t y_stride, size_t first_block, size_t end_block) {
    const PackedMatrix& w = linear.weight;
    const size_t begin = first_block * kBlockRows;
    const size_t end = std::min<size_t>(end_block * kBlockRows, w.rows);
    if (step.m == 1) {
        step.kernels.gemv[w.bits](&w, &x, y, begin, end);
    } else {
        step.kernels.gemm[w.bits](&w, &x, step.m, y, y_stride, begin, end);
    }
    if (linear.bias == nullptr) return;
    for (size_t t = 0; t < step.m; ++t) {
        for (size_t n = begin; n < end; ++n) y[t * y_stride + n] += linear.bias[n];
    }
}

void multiply_all(const Working& step, std::initializer_list<Product> products,
                  const QuantizedRows& x) {
    size_t total = 0;
    for (const Product& p : products) total += blocks_of(p.linear.weight);
    step.team.share(total, grain_of(step), [&](size_t begin, size_t end) {
        for (const Product& p : products) {
            const size_t blocks = blocks_of(p.linear.weight);
            if (begin < blocks && begin < end) {
                multiply(step, p.linear, x, p.y, p.linear.weight.rows, begin,
                         std::min(end, blocks));
            }
            begin -= std::min(begin, blocks);
            end -= std::min(end, blocks);
        }
    });
}

QuantizedRows take_rows(Arena& arena, size_t m, size_t width, size_t groups) {
    const size_t code_stride = round_up(width, 64);
    const size_t group_stride = round_up(groups, 16);  // 16 floats: a cache line
    return {arena.take<int8_t>(m * code_stride), arena.take<float>(m * group_stride),
            arena.take<int32_t>(m * group_stride), code_stride, group_stride};
}

}  // namespace awqe
