// Products of packed matrices, every width and group size, by every kernel that multiplies; see
// selftest.h.
#include <algorithm>

#include "native/cuda/selftest.h"
#include "native/cuda/selftest_trial.h"

namespace awqe::cuda {

TrialMatrix::TrialMatrix(const Trial& trial, size_t rows, size_t columns, uint32_t bits,
                         uint32_t group_size, Codes codes, bool biased, Random& random)
    : packed(packed_matrix_layout(rows, columns, bits, group_size)),
      blocks([&] {
          // Ordinary halves, and now and then zero, a subnormal, a negative one or the largest.
          static const uint16_t rare[] = {0, 1, 0x03ff, 0x8001, 0x7bff};
          const uint32_t largest = (1u << bits) - 1;
          std::vector<uint8_t> bytes((rows + kBlockRows - 1) / kBlockRows * packed.block_bytes);
          for (uint8_t& byte : bytes) {
              byte = codes == Codes::kRandom    ? static_cast<uint8_t>(random.bits())
                     : codes == Codes::kLargest ? 0xff
                                                : 0;
          }
          for (size_t block = 0; block < bytes.size(); block += packed.block_bytes) {
              for (size_t i = 0; i < size_t{packed.groups} * kBlockRows; ++i) {
                  const auto scale = static_cast<uint16_t>(
                      random.below(10) == 0 ? rare[random.below(5)] : 0x1c00 + random.below(0x800));
                  std::memcpy(&bytes[block + 2 * i], &scale, sizeof(scale));
                  bytes[block + packed.zero_points_offset + i] =
                      static_cast<uint8_t>(codes == Codes::kRandom    ? random.below(largest + 1)
                                           : codes == Codes::kLargest ? 0
                                                                      : largest);
              }
          }
          return bytes;
      }()),
      bias(biased ? random.reals(rows, 2.0f) : std::vector<float>()),
      on_gpu(trial, blocks),
      bias_on_gpu(trial, bias),
      matrix(shape_of(packed)) {
    packed.blocks = blocks.data();
    matrix.blocks = on_gpu.get();
    matrix.bias = biased ? bias_on_gpu.get() : nullptr;
}

std::vector<float> TrialMatrix::times(const KernelTable& table, HostRows& x) const {
    std::vector<float> out(x.m * packed.rows);
    const QuantizedRows rows = x.quantized();
    table.gemm[packed.bits](&packed, &rows, x.m, out.data(), packed.rows, 0, packed.rows);
    for (size_t i = 0; i < out.size() && !bias.empty(); ++i) out[i] += bias[i % packed.rows];
    return out;
}

namespace {

using Codes = TrialMatrix::Codes;

struct Width {
    uint32_t bits;
    uint32_t group_size;
};

struct Shape {
    size_t rows;
    size_t columns;  // a multiple of 4: others are not walked
    Codes codes;
};

// Around blocks of 4 rows, tiles of 16, groups and units of inputs.
constexpr Shape kShapes[] = {{5, 36, Codes::kRandom},
                             {13, 260, Codes::kLargest},
                             {22, 1060, Codes::kRandom},
                             {4, 128, Codes::kSmallest}};

// Inputs: all of the largest code against extreme matrices.
std::vector<float> inputs_for(const Shape& shape, size_t m, Random& random) {
    if (shape.codes != Codes::kRandom) return std::vector<float>(m * shape.columns, 0.75f);
    return random.reals(m * shape.columns, 4.0f);
}

// Two matrices with one input, of unlike numbers of rows, and where their outputs come.
struct Pair {
    Pair(const Trial& trial, const Shape& shape, Width width, size_t m, Random& random)
        : first(trial, shape.rows, shape.columns, width.bits, width.group_size, shape.codes, true,
                random),
          second(trial, shape.rows + 3, shape.columns, width.bits, width.group_size, shape.codes,
                 false, random),
          x(inputs_for(shape, m, random)),
          before{random.reals(m * shape.rows, 4.0f), random.reals(m * (shape.rows + 3), 4.0f)},
          out{{trial, before[0]}, {trial, before[1]}} {
        products.matrix[0] = first.matrix;
        products.matrix[1] = second.matrix;
        products.out[0] = out[0].get();
        products.out[1] = out[1].get();
        products.count = 2;
    }

    bool holds(const Trial& trial, HostRows& rows, bool add) const {
        return holds(trial, rows, add, first, 0) && holds(trial, rows, add, second, 1);
    }
    bool holds(const Trial& trial, HostRows& rows, bool add, const TrialMatrix& w,
               size_t number) const {
        std::vector<float> expected = w.times(trial.reference, rows);
        for (size_t i = 0; i < expected.size() && add; ++i) {
            expected[i] = before[number][i] + expected[i];
        }
        return out[number].is(expected);
    }

    TrialMatrix first;
    TrialMatrix second;
    const std::vector<float> x;
    const std::vector<float> before[2];
    const DeviceArray<float> out[2];
    Products products = {};
};

// act(gate x) * up x of one row. `multiply(products, rows)` launches.
template <class Multiply>
void check_gate(Trial& trial, const Shape& shape, Width width, Activation activation,
                Random& random, const Multiply& multiply) {
    const TrialMatrix gate(trial, shape.rows, shape.columns, width.bits, width.group_size,
                           shape.codes, false, random);
    const TrialMatrix up(trial, shape.rows, shape.columns, width.bits, width.group_size,
                         Codes::kRandom, true, random);
    const std::vector<float> x = inputs_for(shape, 1, random);
    HostRows rows(trial.reference, x, 1, shape.columns, width.group_size);
    const DeviceRows on_gpu(trial, rows);
    const DeviceArray<float> out(trial, filled<float>(shape.rows));
    Products products = {};
    products.matrix[0] = gate.matrix;
    products.matrix[1] = up.matrix;
    products.out[0] = out.get();
    products.count = 2;
    products.activation = static_cast<int>(activation);
    multiply(products, on_gpu.rows);
    std::vector<float> expected = gate.times(trial.reference, rows);
    const std::vector<float> factor = up.times(trial.reference, rows);
    trial.reference.activation[activation](expected.data(), factor.data(), expected.size(),
                                           expected.data());
    trial.count(out.is(expected));
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                       Activation::kRelu};

void check_gemv(Trial& trial, Width width, bool add) {
    Random random(width.bits);
    for (const Shape& shape : kShapes) {
        const Pair pair(trial, shape, width, 1, random);
        HostRows rows(trial.reference, pair.x, 1, shape.columns, width.group_size);
        const DeviceRows on_gpu(trial, rows);
        trial.launches().gemv(add ? "_add" : "_store", pair.products, on_gpu.rows);
        trial.count(pair.holds(trial, rows, add));
    }
}

void check_gemv_gate(Trial& trial, Width width) {
    Random random(width.bits);
    for (size_t i = 0; i < std::size(kShapes); ++i) {
        check_gate(trial, kShapes[i], width, kActivations[i % std::size(kActivations)], random,
                   [&](const Products& products, const Activations& x) {
                       trial.launches().gemv("_gate", products, x);
                   });
    }
}

// Rows that are quantised already, floats, and floats that are normed first.
void check_walk(Trial& trial, Width width) {
    Random random(width.bits);
    int kind = awqe_cuda::kQuantised;
    for (const Shape& shape : kShapes) {
        const Pair pair(trial, shape, width, 1, random);
        const std::vector<float> weight = random.reals(shape.columns, 2.0f);
        const DeviceArray<float> x(trial, pair.x);
        const DeviceArray<float> weight_on_gpu(trial, weight);
        const bool layer = shape.rows % 2 == 0;
        awqe_cuda::RowInput in = {};
        in.kind = kind;
        std::vector<float> read = pair.x;
        if (kind == awqe_cuda::kNormed) {
            in.norm = {weight_on_gpu.get(), nullptr, 1e-5f, layer};
            if (layer) {
                trial.reference.layer_norm(pair.x.data(), weight.data(), nullptr, shape.columns,
                                           1e-5f, read.data());
            } else {
                trial.reference.rms_norm(pair.x.data(), weight.data(), shape.columns, 1e-5f,
                                         read.data());
            }
        }
        if (kind != awqe_cuda::kQuantised) in.x = x.get();
        HostRows rows(trial.reference, read, 1, shape.columns, width.group_size);
        const DeviceRows on_gpu(trial, rows);
        in.codes = on_gpu.rows;
        const bool add = shape.codes == Codes::kRandom;
        trial.launches().walk(add ? awqe_cuda::kWalkAdd : awqe_cuda::kWalkStore, pair.products, in);
        trial.count(pair.holds(trial, rows, add));
        kind = kind % awqe_cuda::kNormed + 1;
    }
    for (size_t i = 0; i < 2; ++i) {
        check_gate(trial, kShapes[i + 1], width, kActivations[(width.bits + i) % 4], random,
                   [&](const Products& products, const Activations& x) {
                       awqe_cuda::RowInput in = {};
                       in.kind = awqe_cuda::kQuantised;
                       in.codes = x;
                       trial.launches().walk(awqe_cuda::kWalkGate, products, in);
                   });
    }
}

// `multiply(pair, rows on the GPU, m, add)` launches.
template <class Multiply>
void check_rows(Trial& trial, const Shape& shape, Width width, size_t m, bool add, Random& random,
                const Multiply& multiply) {
    const Pair pair(trial, shape, width, m, random);
    HostRows rows(trial.reference, pair.x, m, shape.columns, width.group_size);
    const DeviceRows on_gpu(trial, rows);
    multiply(pair, on_gpu.rows, m, add);
    trial.count(pair.holds(trial, rows, add));
}

void check_few_rows(Trial& trial, Width width) {
    Random random(width.bits);
    for (size_t m = 2; m <= kFewRows; ++m) {
        check_rows(trial, kShapes[m % std::size(kShapes)], width, m, m % 3 == 0, random,
                   [&](const Pair& pair, const Activations& x, size_t count, bool add) {
                       trial.launches().rows(pair.products, x, count, add);
                   });
    }
}

// Less than a tile of 128 rows and tokens, and more than one of each.
template <class Multiply>
void check_tiles(Trial& trial, Width width, const Multiply& multiply) {
    Random random(width.bits);
    check_rows(trial, {21, 292, Codes::kRandom}, width, 17, false, random, multiply);
    check_rows(trial, {130, 132, Codes::kLargest}, width, 2, true, random, multiply);
    check_rows(trial, {5, 36, Codes::kRandom}, width, 130, true, random, multiply);
}

}  // namespace

void add_product_checks(const DeviceFacts& facts, std::vector<KernelCheck>& checks) {
    const bool sm_90 = facts.capability == 90;  // the module with kernels of its own
    for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
        for (const uint32_t group_size : {128u, 64u, 32u}) {
            const Width width = {bits, group_size};
            const std::string word =
                "_u" + std::to_string(bits) + "_g" + std::to_string(group_size);
            const auto add = [&](const std::string& kernel, std::function<void(Trial&)> run) {
                checks.push_back({kernel, std::move(run)});
            };
            add("gemv" + word + "_store", [=](Trial& t) { check_gemv(t, width, false); });
            add("gemv" + word + "_add", [=](Trial& t) { check_gemv(t, width, true); });
            add("gemv" + word + "_gate", [=](Trial& t) { check_gemv_gate(t, width); });
            add("rows" + word, [=](Trial& t) { check_few_rows(t, width); });
            add("gemm" + word, [=](Trial& trial) {
                check_tiles(trial, width,
                            [&](const Pair& pair, const Activations& x, size_t m, bool adds) {
                                for (int i = 0; i < pair.products.count; ++i) {
                                    trial.launches().gemm(pair.products.matrix[i],
                                                          pair.products.out[i], x, m, adds);
                                }
                            });
            });
            if (has_warpgroups(facts, bits, group_size)) {
                add("gemm_warpgroup" + word, [=](Trial& trial) {
                    check_tiles(trial, width,
                                [&](const Pair& pair, const Activations& x, size_t m, bool adds) {
                                    trial.launches().gemm_warpgroup(pair.products, x, m, adds);
                                });
                });
            }
            if (sm_90 && bits != 8) add("walk" + word, [=](Trial& t) { check_walk(t, width); });
        }
    }
}

}  // namespace awqe::cuda
