// See selftest.h. A case is one call of one kernel on fixed pseudo-random input; its outcome is a
// hash over the whole output buffer, so that a write beside the result is a difference too.
#include "native/kernels/selftest.h"

#include <math.h>
#include <string.h>

#include <iterator>
#include <vector>

#include "native/format/layouts.h"
#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"

namespace awqe {
namespace {

using Hashes = std::vector<uint64_t>;

constexpr uint64_t kHashStart = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
constexpr uint64_t kHashFactor = 0x100000001b3u;

uint64_t hash_bytes(const void* data, size_t size, uint64_t hash = kHashStart) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * kHashFactor;
    return hash;
}

// The same numbers on every machine and compiler.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state_ >> 32);
    }
    uint32_t below(uint32_t end) { return bits() % end; }
    // -limit ... limit; exact in float for a power of two
    float real(float limit) { return (static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f) * limit; }

  private:
    uint64_t state_;
};

// `count` elements at a 64-byte boundary between two margins. The fill makes a stray write and a
// missing one visible in the hash.
template <class T>
class Buffer {
  public:
    explicit Buffer(size_t count) : count_(count), bytes_(count * sizeof(T) + 3 * kMargin, kFill) {
        const auto address = reinterpret_cast<uintptr_t>(bytes_.data() + kMargin);
        begin_ = kMargin + (kMargin - address % kMargin) % kMargin;
    }
    T* data() { return reinterpret_cast<T*>(bytes_.data() + begin_); }
    size_t size() const { return count_; }
    T& operator[](size_t i) { return data()[i]; }
    // Of the elements and the margins on both sides.
    uint64_t hash(uint64_t start = kHashStart) const {
        return hash_bytes(bytes_.data() + begin_ - kMargin, count_ * sizeof(T) + 2 * kMargin,
                          start);
    }

  private:
    static constexpr size_t kMargin = 64;
    static constexpr uint8_t kFill = 0x5a;
    size_t count_;
    size_t begin_;
    std::vector<uint8_t> bytes_;
};

struct Shape {
    size_t rows;
    size_t columns;
};

// Around the block of 4 rows, the tiles of 8 and 16, the 32 and 64 inputs of a block and the
// groups; then long rows of an odd length and a real one.
constexpr Shape kShapes[] = {{1, 1},   {4, 32},   {5, 33},   {13, 127},
                             {8, 129}, {31, 257}, {17, 999}, {16, 2048}};
constexpr size_t kGroupSizes[] = {32, 64, 128};
constexpr size_t kTokenCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 17, 33};
constexpr size_t kLengths[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65, 127, 172, 1031, 2048};

enum class Fill { kRandom, kLargest, kSmallest };
constexpr Fill kFills[] = {Fill::kRandom, Fill::kLargest, Fill::kSmallest};

// A matrix whose codes are random bytes, or as large or as far below the zero-points as can be: the
// sums at which a narrow accumulator would overflow.
class Matrix {
  public:
    Matrix(Shape shape, uint32_t bits, size_t group_size, Fill fill, Random& random)
        : packed(packed_matrix_layout(shape.rows, shape.columns, bits,
                                      static_cast<uint32_t>(group_size))),
          blocks_((shape.rows + kBlockRows - 1) / kBlockRows * packed.block_bytes) {
        for (size_t i = 0; i < blocks_.size(); ++i) {
            blocks_[i] = static_cast<uint8_t>(fill == Fill::kRandom    ? random.bits() >> 8
                                              : fill == Fill::kLargest ? 0xff
                                                                       : 0);
        }
        const uint32_t largest = (1u << bits) - 1;
        for (size_t block = 0; block < blocks_.size(); block += packed.block_bytes) {
            for (size_t i = 0; i < size_t{packed.groups} * kBlockRows; ++i) {
                const uint16_t scale = random_scale(random);
                memcpy(&blocks_[block + 2 * i], &scale, sizeof(scale));
                blocks_[block + packed.zero_points_offset + i] =
                    static_cast<uint8_t>(fill == Fill::kRandom    ? random.below(largest + 1)
                                         : fill == Fill::kLargest ? 0
                                                                  : largest);
            }
        }
        packed.blocks = blocks_.data();
    }
    PackedMatrix packed;

  private:
    // Ordinary halves, and now and then zero, a subnormal, a negative one or the largest.
    static uint16_t random_scale(Random& random) {
        static const uint16_t rare[] = {0, 1, 0x03ff, 0x8001, 0x7bff};
        if (random.below(10) == 0) return rare[random.below(5)];
        return static_cast<uint16_t>(0x1c00 + random.below(0x800));
    }
    Buffer<uint8_t> blocks_;
};

// m rows of int8 activations with their scales and sums.
class Activations {
  public:
    Activations(size_t m, size_t k, size_t group_size, bool extreme, Random& random)
        : codes_(m * round_up(k, 64)),
          scales_(m * ((k + group_size - 1) / group_size)),
          sums_(scales_.size()) {
        const size_t stride = round_up(k, 64);
        const size_t groups = scales_.size() / m;
        memset(codes_.data(), 0, codes_.size());
        for (size_t i = 0; i < sums_.size(); ++i) sums_[i] = 0;
        for (size_t row = 0; row < m; ++row) {
            for (size_t i = 0; i < k; ++i) {
                const auto code = static_cast<int8_t>(
                    extreme ? 127 : static_cast<int32_t>(random.below(255)) - 127);
                codes_[row * stride + i] = code;
                sums_[row * groups + i / group_size] += code;
            }
        }
        for (size_t i = 0; i < scales_.size(); ++i) scales_[i] = random.real(0.125f);
        rows = {codes_.data(), scales_.data(), sums_.data(), stride, groups};
    }
    QuantizedRows rows;

  private:
    Buffer<int8_t> codes_;
    Buffer<float> scales_;
    Buffer<int32_t> sums_;
};

// Calls visit(matrix, group size, extreme activations?, random) for every matrix of the grid.
template <class Visit>
void for_every_matrix(uint32_t bits, Visit visit) {
    Random random(bits);
    for (const size_t group_size : kGroupSizes) {
        for (const Shape shape : kShapes) {
            for (const Fill fill : kFills) {
                const Matrix w(shape, bits, group_size, fill, random);
                visit(w.packed, group_size, fill != Fill::kRandom, random);
            }
        }
    }
}

template <uint32_t bits>
Hashes gemv(const KernelTable& table) {
    Hashes hashes;
    for_every_matrix(bits,
                     [&](const PackedMatrix& w, size_t group_size, bool extreme, Random& random) {
                         const Activations x(1, w.columns, group_size, extreme, random);
                         Buffer<float> y(w.rows);
                         table.gemv[bits](&w, &x.rows, y.data(), 0, w.rows);
                         hashes.push_back(y.hash());
                         if (w.rows <= kBlockRows) return;
                         Buffer<float> part(w.rows);
                         table.gemv[bits](&w, &x.rows, part.data(), kBlockRows, w.rows);
                         hashes.push_back(part.hash());
                     });
    return hashes;
}

template <uint32_t bits>
Hashes gemm(const KernelTable& table) {
    Hashes hashes;
    size_t turn = 0;
    for_every_matrix(bits, [&](const PackedMatrix& w, size_t group_size, bool extreme,
                               Random& random) {
        const size_t m = kTokenCounts[turn++ % (sizeof(kTokenCounts) / sizeof(kTokenCounts[0]))];
        const Activations x(m, w.columns, group_size, extreme, random);
        const size_t stride = w.rows + 3;
        Buffer<float> y(m * stride);
        table.gemm[bits](&w, &x.rows, m, y.data(), stride, 0, w.rows);
        hashes.push_back(y.hash());
    });
    return hashes;
}

Hashes embedding(const KernelTable& table) {
    Hashes hashes;
    for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
        for_every_matrix(bits, [&](const PackedMatrix& w, size_t, bool, Random& random) {
            Buffer<float> out(w.columns);
            table.embedding(&w, random.below(static_cast<uint32_t>(w.rows)), out.data());
            hashes.push_back(out.hash());
        });
    }
    return hashes;
}

// Floats of every size that occurs and some that should not: zeros, tiny and huge numbers.
void fill_reals(Buffer<float>& x, Random& random) {
    static const float limits[] = {1.0f, 32.0f, 0x1p-90f, 0x1p-140f, 0x1p+60f, 0.0f};
    float limit = 1.0f;
    for (size_t i = 0; i < x.size(); ++i) {
        if (i % 32 == 0) limit = limits[random.below(6)];
        x[i] = random.real(limit);
    }
}

Hashes quantize_act(const KernelTable& table) {
    Hashes hashes;
    Random random(11);
    for (const size_t group_size : kGroupSizes) {
        for (const size_t k : kLengths) {
            Buffer<float> x(k);
            fill_reals(x, random);
            const size_t groups = (k + group_size - 1) / group_size;
            Buffer<int8_t> codes(2 * round_up(k, 64));
            Buffer<float> scales(2 * groups);
            Buffer<int32_t> sums(2 * groups);
            const QuantizedRows rows = {codes.data(), scales.data(), sums.data(), round_up(k, 64),
                                        groups};
            table.quantize_act(x.data(), k, group_size, &rows, 1);
            hashes.push_back(sums.hash(scales.hash(codes.hash())));
            for (const float bad : {-INFINITY, NAN}) {  // its group alone has no scale then
                x[k / 2] = bad;
                table.quantize_act(x.data(), k, group_size, &rows, 1);
                hashes.push_back(sums.hash(scales.hash(codes.hash())));
            }
        }
    }
    return hashes;
}

Hashes rms_norm(const KernelTable& table) {
    Hashes hashes;
    Random random(12);
    for (const size_t n : kLengths) {
        Buffer<float> x(n);
        Buffer<float> weight(n);
        Buffer<float> y(n);
        for (size_t i = 0; i < n; ++i) x[i] = random.real(8.0f);
        for (size_t i = 0; i < n; ++i) weight[i] = random.real(2.0f);
        table.rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
        hashes.push_back(y.hash());
    }
    return hashes;
}

Hashes rope(const KernelTable& table) {
    Hashes hashes;
    Random random(13);
    for (const size_t head_size : {2, 8, 30, 64, 128}) {
        for (const size_t heads : {1, 3, 8}) {
            const size_t half = head_size / 2;
            Buffer<float> frequencies(half);
            Buffer<float> cosines(half);
            Buffer<float> sines(half);
            Buffer<float> x(heads * head_size);
            for (size_t i = 0; i < half; ++i) frequencies[i] = 1.0f / static_cast<float>(1 + i * i);
            for (size_t i = 0; i < x.size(); ++i) x[i] = random.real(4.0f);
            rope_angles(random.below(8192), frequencies.data(), half, cosines.data(), sines.data());
            table.rope(x.data(), heads, head_size, cosines.data(), sines.data());
            hashes.push_back(sines.hash(cosines.hash(x.hash())));
        }
    }
    return hashes;
}

Hashes store_half(const KernelTable& table) {
    Hashes hashes;
    Random random(14);
    for (const size_t n : kLengths) {
        Buffer<float> x(n);
        Buffer<uint16_t> out(n);
        for (size_t i = 0; i < n; ++i) x[i] = random.real(i % 7 == 0 ? 0x1p-20f : 65536.0f);
        table.store_half(x.data(), n, out.data());
        hashes.push_back(out.hash());
    }
    return hashes;
}

enum class Scores { kPlain, kCapped, kSloped };

// What happens to scores, for `count` queries; nothing is drawn where nothing happens.
template <Scores kScores>
class Changes {
  public:
    Changes(size_t count, Random& random) : slopes_(count), change_{0.0f, nullptr} {
        if (kScores == Scores::kCapped) change_.cap = 1.5f;
        if (kScores != Scores::kSloped) return;
        for (size_t i = 0; i < count; ++i) slopes_[i] = fabsf(random.real(0.25f));
        change_.slopes = slopes_.data();
    }
    const ScoreChange* or_none() const { return kScores == Scores::kPlain ? nullptr : &change_; }

  private:
    Buffer<float> slopes_;
    ScoreChange change_;
};

template <Scores kScores>
Hashes attention(const KernelTable& table) {
    Hashes hashes;
    Random random(15);
    const size_t ranges[][2] = {{0, 1}, {0, 16}, {0, 65}, {17, 100}, {63, 66}, {100, 200}};
    for (const auto& range : ranges) {
        for (const size_t head_size : {2, 8, 30, 64, 128}) {
            for (const size_t count : {1, 2, 5}) {
                const size_t stride = head_size + 16;
                Buffer<float> queries(count * head_size);
                Buffer<uint16_t> keys(range[1] * stride);
                Buffer<uint16_t> values(range[1] * stride);
                Buffer<float> out(count * head_size);
                for (size_t i = 0; i < queries.size(); ++i) queries[i] = random.real(4.0f);
                for (size_t i = 0; i < keys.size(); ++i) {
                    // Halves between 2^-3 and 2, of both signs.
                    keys[i] = static_cast<uint16_t>(0x3000 + (random.bits() & 0x8fff));
                    values[i] = static_cast<uint16_t>(0x3000 + (random.bits() & 0x8fff));
                }
                const Changes<kScores> changes(count, random);
                const CacheF16 cache = {keys.data(), values.data(), stride, range[1]};
                table.attention_f16(queries.data(), count, &cache, head_size, range[0], range[1],
                                    changes.or_none(), out.data());
                hashes.push_back(out.hash());
            }
        }
    }
    return hashes;
}

template <Scores kScores>
Hashes attention_s8(const KernelTable& table) {
    Hashes hashes;
    Random random(17);
    const size_t ranges[][2] = {{0, 1}, {0, 65}, {17, 100}, {63, 66}, {100, 200}};
    for (const auto& range : ranges) {
        for (const size_t head_size : {2, 8, 30, 64, 128}) {
            for (const size_t count : {1, 2, 5}) {
                const size_t rows = 128;  // a ring
                Buffer<float> queries(count * head_size);
                Buffer<int8_t> keys(rows * head_size);
                Buffer<int8_t> values(rows * head_size);
                Buffer<float> scales(2 * rows);
                Buffer<float> out(count * head_size);
                for (size_t i = 0; i < queries.size(); ++i) queries[i] = random.real(4.0f);
                for (size_t i = 0; i < keys.size(); ++i) {
                    keys[i] = static_cast<int8_t>(static_cast<int32_t>(random.below(255)) - 127);
                    values[i] = static_cast<int8_t>(static_cast<int32_t>(random.below(255)) - 127);
                }
                for (size_t i = 0; i < scales.size(); ++i) scales[i] = random.real(0.015625f);
                const Changes<kScores> changes(count, random);
                const CacheS8 cache = {keys.data(),          values.data(), scales.data(),
                                       scales.data() + rows, head_size,     rows};
                table.attention_s8(queries.data(), count, &cache, head_size, range[0], range[1],
                                   changes.or_none(), out.data());
                hashes.push_back(out.hash());
            }
        }
    }
    return hashes;
}

Hashes layer_norm(const KernelTable& table) {
    Hashes hashes;
    Random random(17);
    for (const size_t n : kLengths) {
        Buffer<float> x(n);
        Buffer<float> weight(n);
        Buffer<float> bias(n);
        Buffer<float> out(n);
        for (size_t i = 0; i < n; ++i) x[i] = random.real(4.0f);
        for (size_t i = 0; i < n; ++i) weight[i] = random.real(2.0f);
        for (size_t i = 0; i < n; ++i) bias[i] = random.real(2.0f);
        for (const bool biased : {false, true}) {
            table.layer_norm(x.data(), weight.data(), biased ? bias.data() : nullptr, n, 1e-5f,
                             out.data());
            hashes.push_back(out.hash());
        }
    }
    return hashes;
}

Hashes soft_cap(const KernelTable& table) {
    Hashes hashes;
    Random random(18);
    for (const size_t n : kLengths) {
        for (const float cap : {0.5f, 30.0f}) {
            Buffer<float> x(n);
            for (size_t i = 0; i < n; ++i) x[i] = random.real(i % 9 == 0 ? 0x1p+60f : 32.0f);
            table.soft_cap(x.data(), n, cap);
            hashes.push_back(x.hash());
        }
    }
    return hashes;
}

template <Activation kActivation>
Hashes activation(const KernelTable& table) {
    Hashes hashes;
    Random random(16);
    for (const size_t n : kLengths) {
        Buffer<float> x(n);
        Buffer<float> factor(n);
        Buffer<float> out(n);
        for (size_t i = 0; i < n; ++i) x[i] = random.real(i % 9 == 0 ? 256.0f : 16.0f);
        for (size_t i = 0; i < n; ++i) factor[i] = random.real(16.0f);
        table.activation[kActivation](x.data(), factor.data(), n, out.data());
        hashes.push_back(out.hash());
        if (kActivation == Activation::kSilu) continue;  // as recorded before there were others
        table.activation[kActivation](x.data(), nullptr, n, out.data());
        hashes.push_back(out.hash());
    }
    return hashes;
}

Hashes router(const KernelTable& table) {
    Hashes hashes;
    Random random(18);
    for (const size_t k : kLengths) {
        const size_t experts = 9;
        Buffer<float> x(k);
        Buffer<float> weight(experts * k);
        for (size_t i = 0; i < x.size(); ++i) x[i] = random.real(4.0f);
        for (size_t i = 0; i < weight.size(); ++i) weight[i] = random.real(0.5f);
        for (const size_t begin : {0, 1, 5}) {
            Buffer<float> logits(experts);
            table.router(x.data(), weight.data(), k, begin, experts, logits.data());
            hashes.push_back(logits.hash());
        }
    }
    return hashes;
}

Hashes softmax(const KernelTable& table) {
    Hashes hashes;
    Random random(19);
    for (const size_t n : kLengths) {
        for (const float limit : {1.0f, 16.0f, 256.0f}) {
            Buffer<float> x(n);
            Buffer<float> p(n);
            for (size_t i = 0; i < n; ++i) x[i] = random.real(limit);
            table.softmax(x.data(), n, p.data());
            hashes.push_back(p.hash());
        }
    }
    return hashes;
}

struct Operation {
    const char* name;
    Hashes (*run)(const KernelTable& table);
    uint64_t reference_hash;  // over the reference's case hashes; changes only with
                              // ARITHMETIC.md or the grid above
};

constexpr Operation kOperations[] = {
    {"matrix-vector, 2 bits", gemv<2>, 0x29bb176b907ab505u},
    {"matrix-vector, 3 bits", gemv<3>, 0x178e096cf528bbbau},
    {"matrix-vector, 4 bits", gemv<4>, 0x610e523bf742f067u},
    {"matrix-vector, 5 bits", gemv<5>, 0xa6851b40ce03a765u},
    {"matrix-vector, 6 bits", gemv<6>, 0x2dd72fc5ff33fad9u},
    {"matrix-vector, 8 bits", gemv<8>, 0x62846766435ed104u},
    {"matrix-matrix, 2 bits", gemm<2>, 0x6cd16b9aad5b2136u},
    {"matrix-matrix, 3 bits", gemm<3>, 0xf968bc1c50242071u},
    {"matrix-matrix, 4 bits", gemm<4>, 0xd35265433709e223u},
    {"matrix-matrix, 5 bits", gemm<5>, 0xe8503599e4dab814u},
    {"matrix-matrix, 6 bits", gemm<6>, 0x9482bb3012debc17u},
    {"matrix-matrix, 8 bits", gemm<8>, 0xc533aef95f3b7cd4u},
    {"embedding", embedding, 0xc5e4cd232d1063a8u},
    {"activation codes", quantize_act, 0x938ed0b109109811u},
    {"RMS norm", rms_norm, 0xc7be6589fad5d252u},
    {"rotary position", rope, 0x1b7359f42d1e5c37u},
    {"cache in fp16", store_half, 0x96ef4b397ce39747u},
    {"attention", attention<Scores::kPlain>, 0xf8b3fca6a331c69cu},
    {"attention, int8 cache", attention_s8<Scores::kPlain>, 0x5a2de0329813dfdeu},
    {"attention with a cap", attention<Scores::kCapped>, 0xf718a91c51b2a1bbu},
    {"attention with a cap, int8 cache", attention_s8<Scores::kCapped>, 0xdf89ad379fb79ccfu},
    {"attention with ALiBi", attention<Scores::kSloped>, 0x507980f8b1b2c0c6u},
    {"attention with ALiBi, int8 cache", attention_s8<Scores::kSloped>, 0xa31cce8471afc50au},
    {"soft cap", soft_cap, 0x50cce68173c834cfu},
    {"layer norm", layer_norm, 0x3517ef371559566fu},
    {"SiLU", activation<Activation::kSilu>, 0xcdeb4590d851cfb4u},
    {"GELU", activation<Activation::kGelu>, 0xe3f53da157cd719bu},
    {"GELU by tanh", activation<Activation::kGeluTanh>, 0x4ee93b2ac88e0a17u},
    {"ReLU", activation<Activation::kRelu>, 0xe124673bed6b97d3u},
    {"quick GELU", activation<Activation::kQuickGelu>, 0xa5f7f94ad9c3ab2eu},
    {"router", router, 0x02c51eef25a49174u},
    {"softmax", softmax, 0x585a6fdca9815ebdu},
};

constexpr size_t kOperationCount = std::size(kOperations);

const KernelTable& reference_table() {
    size_t count = 0;
    const KernelTable* const* tables = kernel_tables(&count);
    return *tables[count - 1];
}

}  // namespace

Selftest::Selftest() : reference_(reference_table()), recorded_(true) {
    size_t count = 0;
    const KernelTable* const* tables = kernel_tables(&count);
    for (size_t i = 0; i + 1 < count; ++i) {
        if ((tables[i]->required & ~cpu_features()) == 0) tested_.push_back(tables[i]);
    }
}

Selftest::Selftest(const KernelTable& tested, const KernelTable& expected)
    : reference_(expected), tested_{&tested}, recorded_(false) {
    for (const Operation& operation : kOperations) expected_.push_back(operation.run(expected));
}

bool Selftest::next(SelftestResult* result) {
    if (operation_ == kOperationCount) {
        operation_ = 0;
        table_ += recorded_ ? 0 : 1;
        recorded_ = false;
    }
    if (!recorded_ && table_ == tested_.size()) return false;
    const Operation& operation = kOperations[operation_];
    const KernelTable& table = recorded_ ? reference_ : *tested_[table_];
    const Hashes is = operation.run(table);
    *result = {table.name, operation.name, static_cast<uint32_t>(is.size()), 0};
    if (recorded_) {
        expected_.push_back(is);
        // One record for all cases: which of them differ is unknown.
        const uint64_t hash = hash_bytes(is.data(), is.size() * sizeof(is[0]));
        result->differing = hash == operation.reference_hash ? 0 : result->cases;
    } else {
        for (size_t i = 0; i < is.size(); ++i) {
            result->differing += is[i] != expected_[operation_][i] ? 1 : 0;
        }
    }
    ++operation_;
    return true;
}

}  // namespace awqe
