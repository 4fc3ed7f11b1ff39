// Calls one kernel of one table a given number of times: what count.py counts the instructions of.
// Owns the inputs; it measures and prints nothing.
//
//   kernel_loop TABLE OPERATION REPETITIONS [NUMBER ...]
//
// gemv BITS GROUP ROWS COLUMNS, gemm BITS GROUP ROWS COLUMNS TOKENS, quantize_act GROUP COLUMNS,
// rms_norm COLUMNS, silu COLUMNS, rope HEADS SIZE, store_half COLUMNS,
// attention QUERIES SIZE POSITIONS
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "native/kernels/dispatch.h"

namespace awqe {
namespace {

// Codes 1, zero-points 1, scales 2^-8.
struct Matrix {
    Matrix(int bits, size_t group_size, size_t rows, size_t columns)
        : packed(packed_matrix_layout(rows, columns, static_cast<uint32_t>(bits),
                                      static_cast<uint32_t>(group_size))),
          bytes((rows + kBlockRows - 1) / kBlockRows * packed.block_bytes + 64, 0x11) {
        const auto address = reinterpret_cast<uintptr_t>(bytes.data());
        uint8_t* first = bytes.data() + (64 - address % 64) % 64;
        packed.blocks = first;
        for (uint64_t row = 0; row < rows; row += kBlockRows, first += packed.block_bytes) {
            for (uint32_t i = 0; i < packed.groups * kBlockRows; ++i) {
                const uint16_t scale = 0x1c00;
                std::memcpy(first + 2 * i, &scale, sizeof(scale));
                first[packed.zero_points_offset + i] = 1;
            }
        }
    }
    PackedMatrix packed;
    std::vector<uint8_t> bytes;
};

// Codes 3.
struct Activations {
    Activations(size_t m, size_t k, size_t group_size)
        : stride(round_up(k, 64)),
          groups((k + group_size - 1) / group_size),
          codes(m * stride, 3),
          scales(m * groups, 0x1p-8f),
          sums(m * groups, static_cast<int32_t>(3 * group_size)),
          rows{codes.data(), scales.data(), sums.data(), stride, groups} {}
    size_t stride;
    size_t groups;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    QuantizedRows rows;
};

const KernelTable* find_table(const char* name) {
    size_t count = 0;
    const KernelTable* const* tables = kernel_tables(&count);
    for (size_t i = 0; i < count; ++i) {
        if (std::strcmp(tables[i]->name, name) == 0) return tables[i];
    }
    return nullptr;
}

bool run(const KernelTable& table, const std::string& operation, long repetitions,
         const std::vector<size_t>& n) {
    const auto repeat = [repetitions](const auto& call) {
        for (long i = 0; i < repetitions; ++i) call();
        return true;
    };
    if (operation == "gemv" && n.size() == 4) {
        const Matrix w(static_cast<int>(n[0]), n[1], n[2], n[3]);
        const Activations x(1, n[3], n[1]);
        std::vector<float> y(n[2]);
        return repeat([&] { table.gemv[n[0]](&w.packed, &x.rows, y.data(), 0, n[2]); });
    }
    if (operation == "gemm" && n.size() == 5) {
        const Matrix w(static_cast<int>(n[0]), n[1], n[2], n[3]);
        const Activations x(n[4], n[3], n[1]);
        std::vector<float> y(n[4] * n[2]);
        return repeat([&] { table.gemm[n[0]](&w.packed, &x.rows, n[4], y.data(), n[2], 0, n[2]); });
    }
    if (operation == "quantize_act" && n.size() == 2) {
        const std::vector<float> x(n[1], 0.5f);
        const Activations out(1, n[1], n[0]);
        return repeat([&] { table.quantize_act(x.data(), n[1], n[0], &out.rows, 0); });
    }
    if (operation == "rms_norm" && n.size() == 1) {
        const std::vector<float> x(n[0], 0.5f);
        std::vector<float> y(n[0]);
        return repeat([&] { table.rms_norm(x.data(), x.data(), n[0], 1e-5f, y.data()); });
    }
    if (operation == "silu" && n.size() == 1) {
        const std::vector<float> x(n[0], 0.5f);
        std::vector<float> y(n[0]);
        const ActivationFunction silu = table.activation[Activation::kSilu];
        return repeat([&] { silu(x.data(), x.data(), n[0], y.data()); });
    }
    if (operation == "rope" && n.size() == 2) {
        const std::vector<float> half(n[1] / 2, 0.5f);
        std::vector<float> x(n[0] * n[1], 0.5f);
        return repeat([&] { table.rope(x.data(), n[0], n[1], half.data(), half.data()); });
    }
    if (operation == "store_half" && n.size() == 1) {
        const std::vector<float> x(n[0], 0.5f);
        std::vector<uint16_t> out(n[0]);
        return repeat([&] { table.store_half(x.data(), n[0], out.data()); });
    }
    if (operation == "attention" && n.size() == 3) {
        const std::vector<float> queries(n[0] * n[1], 0.5f);
        const std::vector<uint16_t> cache(n[1] * n[2], 0x3800);  // 0.5
        std::vector<float> out(n[0] * n[1]);
        return repeat([&] {
            const CacheF16 rows = {cache.data(), cache.data(), n[1], n[2]};
            table.attention_f16(queries.data(), n[0], &rows, n[1], 0, n[2], nullptr, out.data());
        });
    }
    return false;
}

}  // namespace
}  // namespace awqe

int main(int argc, char** argv) {
    const awqe::KernelTable* table = argc > 3 ? awqe::find_table(argv[1]) : nullptr;
    std::vector<size_t> numbers;
    for (int i = 4; i < argc; ++i) numbers.push_back(std::strtoul(argv[i], nullptr, 10));
    if (table != nullptr && awqe::run(*table, argv[2], std::strtol(argv[3], nullptr, 10), numbers))
        return 0;
    std::fprintf(stderr, "usage: kernel_loop TABLE OPERATION REPETITIONS [NUMBER ...]\n");
    return 2;
}
