// The sizes that kernels are tested at: around every tile and group boundary, primes, and shapes of
// real models.
#pragma once

#include <cstddef>
#include <vector>

namespace awqe::test {

struct MatrixShape {
    size_t rows;
    size_t columns;
};

inline const std::vector<size_t>& group_sizes() {
    static const std::vector<size_t> all = {32, 64, 128};
    return all;
}

inline const std::vector<int>& bit_widths() {
    static const std::vector<int> all = {2, 3, 4, 5, 6, 8};
    return all;
}

// Rows around the block of 4 and the tiles of 8 and 16; columns around 32, 64 and 128.
inline std::vector<MatrixShape> matrix_shapes() {
    std::vector<MatrixShape> all;
    for (const size_t rows : {1, 4, 5, 13}) {
        for (const size_t columns : {1, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 191, 257}) {
            all.push_back({rows, columns});
        }
    }
    all.push_back({31, 32});
    all.push_back({33, 160});
    all.push_back({172, 64});   // stories260k, gate
    all.push_back({64, 172});   // stories260k, down
    all.push_back({16, 2048});  // a few rows of TinyLlama's query
    all.push_back({8, 5632});   // and of its down projection
    return all;
}

// Tokens of a matrix-matrix product: around tiles of 2, 4, 8, 12, 16 and 32.
inline const std::vector<size_t>& token_counts() {
    static const std::vector<size_t> all = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 33};
    return all;
}

// Lengths of vectors: around 4, 8, 16, 32 and 64 lanes, primes, and widths of real models.
inline const std::vector<size_t>& vector_lengths() {
    static const std::vector<size_t> all = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,   17,
                                            31, 32, 33, 63, 64, 65, 127, 128, 172, 1031, 2048};
    return all;
}

}  // namespace awqe::test
