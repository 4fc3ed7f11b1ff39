// Differential fuzz target: any bytes choose an operation, its shape and its numbers, and every
// kernel table that this CPU can run must give the bits of the reference. Any difference aborts and
// says which. Built twice:
//   build/fuzz/tests/native/fuzz_kernels -len_control=0 -max_len=64    libFuzzer (`fuzz` preset)
//   fuzz_kernels_loop CASES [SEED]       plain, on every machine, by ctest
//
// Numbers of every size, infinities and NaN among them: results are equal bits, or NaN in both
// (native/ARITHMETIC.md, section 1).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/native/support/guarded_buffer.h"
#include "tests/native/support/random.h"
#include "tests/native/support/tables.h"
#include "tests/native/support/test_matrix.h"

namespace awqe::test {
namespace {

// Decisions from the input's bytes; zeros behind its end.
class Choices {
  public:
    Choices(const uint8_t* data, size_t size) : data_(data), left_(size) {}

    uint32_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    // first ... last, at most 65536 apart
    size_t number(size_t first, size_t last) {
        const size_t two = byte() | byte() << 8;
        return first + two % (last - first + 1);
    }
    bool coin() { return (byte() & 1) != 0; }
    uint64_t seed() {
        uint64_t seed = 0;
        for (int i = 0; i < 4; ++i) seed = seed << 8 | byte();
        return seed;
    }

  private:
    const uint8_t* data_;
    size_t left_;
};

// Numbers of several kinds; which of them occur is chosen once.
class Numbers {
  public:
    explicit Numbers(Choices& choices)
        : kinds_(choices.byte() | choices.byte() << 8),
          largest_exponent_(static_cast<int>(choices.byte() % 128)),
          random_(choices.seed()) {}

    float next() {
        // What is not finite spoils everything that it meets: seldom.
        static const float spoilers[] = {INFINITY, -INFINITY, NAN};
        if ((kinds_ >> 8 & 7) == 7 && random_.integer(0, 999) == 0) {
            return spoilers[random_.integer(0, 2)];
        }
        const int kind = random_.integer(0, 15);
        if (kind >= 8 || (kinds_ >> kind & 1) == 0) return random_.real(1.0f);
        switch (kind) {
            case 0:
                return 0.0f;
            case 1:
                return -0.0f;
            case 2:
                return random_.real(0x1p-130f);  // mostly subnormal
            case 3:
                return random_.real(0x1p-99f);  // around the smallest that a code is made of
            case 4:
                return random_.real(100.0f);  // around the bounds of exp
            case 5:
                return static_cast<float>(random_.integer(-8, 8)) * 0.5f;  // ties
            case 6:
                return random_.real(std::ldexp(1.0f, largest_exponent_));
            default:
                return random_.integer(0, 1) == 0 ? 1.0f : -1.0f;
        }
    }
    void fill(float* out, size_t count) {
        for (size_t i = 0; i < count; ++i) out[i] = next();
    }
    Random& random() { return random_; }

  private:
    uint32_t kinds_;
    int largest_exponent_;
    Random random_;
};

template <class T>
bool same(T a, T b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0;
}
bool same(float a, float b) {
    return std::memcmp(&a, &b, sizeof(float)) == 0 || (std::isnan(a) && std::isnan(b));
}
// A half that is NaN may be any NaN, as the float that it is made of.
bool same(uint16_t a, uint16_t b) {
    return a == b || ((a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00);
}

// Runs `compute(table, out)` for every table; all must leave `out` as the reference does.
template <class T, class Compute>
void compare(const std::string& what, size_t count, const Compute& compute) {
    GuardedBuffer<T> expected(count);
    compute(reference_table(), expected.data());
    for (const KernelTable* table : runnable_tables()) {
        GuardedBuffer<T> out(count);
        compute(*table, out.data());
        if (std::memcmp(out.data(), expected.data(), count * sizeof(T)) == 0) continue;
        size_t i = 0;
        while (i < count && same(out[i], expected[i])) ++i;
        if (i == count) continue;
        std::fprintf(stderr, "%s: %s: element %zu is %.9g, the reference gives %.9g\n", table->name,
                     what.c_str(), i, static_cast<double>(out[i]),
                     static_cast<double>(expected[i]));
        std::abort();
    }
}

std::string text(const char* format, size_t a, size_t b = 0, size_t c = 0, size_t d = 0,
                 size_t e = 0, size_t f = 0) {
    char buffer[200];
    std::snprintf(buffer, sizeof(buffer), format, a, b, c, d, e, f);
    return buffer;
}

// Mostly small, sometimes as wide as real models'.
size_t width(Choices& choices) {
    return choices.byte() % 16 == 0 ? choices.number(1, 6000) : choices.number(1, 400);
}

// Both matrix products, over a range of rows.
void multiply(Choices& choices) {
    static const int widths[] = {2, 3, 4, 5, 6, 8};
    const int bits = widths[choices.byte() % 4];
    const size_t g = size_t{32} << choices.byte() % 3;
    const size_t k = width(choices);
    const size_t n = choices.number(1, 80);
    const size_t m = choices.coin() ? 1 : choices.number(1, 70);
    const Fill fill = static_cast<Fill>(choices.byte() % 3);
    const size_t begin = choices.number(0, n) / 4 * 4;
    size_t end = std::min(n, (choices.number(begin, n) + 3) / 4 * 4);
    const bool extreme = choices.coin();
    const size_t stride = n + choices.number(0, 3);
    TestMatrix w(n, k, bits, g, fill, choices.seed());
    if (choices.byte() % 8 == 0) {  // a scale of the matrix that is not finite
        const uint16_t half = static_cast<uint16_t>(0x7c00 | choices.byte() << 8 | choices.byte());
        const size_t row = choices.number(0, n - 1);
        const size_t group = choices.number(0, w.groups - 1);
        std::memcpy(w.blocks.data() + row / 4 * w.packed.block_bytes + 2 * (group * 4 + row % 4),
                    &half, sizeof(half));
    }
    TestActivations x(m, k, g, extreme, choices.seed());
    Numbers scales(choices);
    if (choices.coin()) {
        for (size_t i = 0; i < x.scales.size(); ++i) x.scales[i] = std::fabs(scales.next());
    }
    compare<float>(text("gemm u%zu, groups of %zu, k %zu, rows %zu to %zu, %zu tokens",
                        static_cast<size_t>(bits), g, k, begin, end, m),
                   (m - 1) * stride + n, [&](const KernelTable& table, float* y) {
                       table.gemm[bits](&w.packed, &x.rows, m, y, stride, begin, end);
                   });
    compare<float>(text("gemv u%zu, groups of %zu, k %zu, rows %zu to %zu",
                        static_cast<size_t>(bits), g, k, begin, end),
                   n, [&](const KernelTable& table, float* y) {
                       table.gemv[bits](&w.packed, &x.rows, y, begin, end);
                   });
}

void quantize(Choices& choices) {
    const size_t k = width(choices);
    const size_t g = choices.coin() ? size_t{32} << choices.byte() % 3 : choices.number(1, 256);
    const size_t padded = (k + 63) / 64 * 64;
    const size_t groups = (k + g - 1) / g;
    Numbers numbers(choices);
    GuardedBuffer<float> x(k);
    numbers.fill(x.data(), k);
    // Codes, scales and sums behind each other.
    compare<uint8_t>(text("quantize_act, k %zu, groups of %zu", k, g), padded + 8 * groups,
                     [&](const KernelTable& table, uint8_t* out) {
                         GuardedBuffer<int8_t> codes(padded);
                         GuardedBuffer<float> scales(groups);
                         GuardedBuffer<int32_t> sums(groups);
                         const QuantizedRows rows = {codes.data(), scales.data(), sums.data(),
                                                     padded, groups};
                         table.quantize_act(x.data(), k, g, &rows, 0);
                         std::memcpy(out, codes.data(), padded);
                         std::memcpy(out + padded, scales.data(), 4 * groups);
                         std::memcpy(out + padded + 4 * groups, sums.data(), 4 * groups);
                     });
}

void normalize(Choices& choices) {
    const size_t n = width(choices);
    Numbers numbers(choices);
    GuardedBuffer<float> x(n);
    GuardedBuffer<float> weight(n);
    numbers.fill(x.data(), n);
    numbers.fill(weight.data(), n);
    const bool in_place = choices.coin();
    const float epsilon = choices.coin() ? 1e-5f : 1e-6f;
    if (choices.coin()) {
        GuardedBuffer<float> bias(n);
        numbers.fill(bias.data(), n);
        const float* const or_none = choices.coin() ? bias.data() : nullptr;
        compare<float>(text("layer_norm, n %zu, in place %zu", n, in_place), n,
                       [&](const KernelTable& table, float* y) {
                           if (in_place) std::memcpy(y, x.data(), n * sizeof(float));
                           table.layer_norm(in_place ? y : x.data(), weight.data(), or_none, n,
                                            epsilon, y);
                       });
        return;
    }
    compare<float>(text("rms_norm, n %zu, in place %zu", n, in_place), n,
                   [&](const KernelTable& table, float* y) {
                       if (in_place) std::memcpy(y, x.data(), n * sizeof(float));
                       table.rms_norm(in_place ? y : x.data(), weight.data(), n, epsilon, y);
                   });
}

void gate(Choices& choices) {
    const size_t n = width(choices);
    Numbers numbers(choices);
    GuardedBuffer<float> gates(n);
    GuardedBuffer<float> up(n);
    numbers.fill(gates.data(), n);
    numbers.fill(up.data(), n);
    const size_t alias = choices.byte() % 3;
    compare<float>(text("silu, n %zu, alias %zu", n, alias), n,
                   [&](const KernelTable& table, float* out) {
                       const float* const from = alias == 1 ? gates.data() : up.data();
                       if (alias != 0) std::memcpy(out, from, n * sizeof(float));
                       table.activation.silu(alias == 1 ? out : gates.data(),
                                             alias == 2 ? out : up.data(), n, out);
                   });
}

void cap(Choices& choices) {
    const size_t n = width(choices);
    Numbers numbers(choices);
    GuardedBuffer<float> x(n);
    numbers.fill(x.data(), n);
    const float most = std::fabs(numbers.random().real(50.0f)) + 0.001f;
    compare<float>(text("soft_cap, n %zu", n), n, [&](const KernelTable& table, float* out) {
        std::memcpy(out, x.data(), n * sizeof(float));
        table.soft_cap(out, n, most);
    });
}

void rotate(Choices& choices) {
    const size_t heads = choices.number(1, 9);
    const size_t half = choices.number(1, 128);
    const size_t position = choices.number(0, 65535);
    Numbers numbers(choices);
    std::vector<float> frequencies(half);
    for (float& f : frequencies) f = std::fabs(numbers.random().real(1.0f));
    GuardedBuffer<float> cosines(half);
    GuardedBuffer<float> sines(half);
    rope_angles(position, frequencies.data(), half, cosines.data(), sines.data());
    GuardedBuffer<float> x(heads * 2 * half);
    numbers.fill(x.data(), x.size());
    compare<float>(text("rope, %zu heads of %zu", heads, 2 * half), x.size(),
                   [&](const KernelTable& table, float* out) {
                       std::memcpy(out, x.data(), x.size() * sizeof(float));
                       table.rope(out, heads, 2 * half, cosines.data(), sines.data());
                   });
}

void store_halves(Choices& choices) {
    const size_t n = width(choices);
    Numbers numbers(choices);
    GuardedBuffer<float> x(n);
    numbers.fill(x.data(), n);
    compare<uint16_t>(
        text("store_half, n %zu", n), n,
        [&](const KernelTable& table, uint16_t* out) { table.store_half(x.data(), n, out); });
}

// Both caches, whole or as a ring.
void attend(Choices& choices) {
    const size_t count = choices.number(1, 9);
    const size_t d = 2 * choices.number(1, 128);
    const size_t end = choices.number(1, 400);
    const size_t chunks = choices.number(1, 7);
    const bool is_ring = choices.coin();
    const size_t ring = is_ring ? chunks * kAttentionChunk : end;
    const size_t begin = choices.number(end > ring ? end - ring : 0, end - 1);
    const size_t stride = d + choices.number(0, 9);
    Numbers numbers(choices);
    GuardedBuffer<float> queries(count * d);
    numbers.fill(queries.data(), queries.size());
    const std::string shape = text("%zu queries of %zu, positions %zu to %zu, ring %zu, stride %zu",
                                   count, d, begin, end, ring, stride);
    const size_t elements = (ring - 1) * stride + d;
    Random& random = numbers.random();
    GuardedBuffer<float> slopes(count);
    for (size_t i = 0; i < count; ++i) slopes[i] = std::fabs(random.real(1.0f));
    const size_t which = choices.byte() % 4;  // a cap, slopes, both or nothing
    const ScoreChange change = {(which & 1) != 0 ? std::fabs(random.real(8.0f)) + 0.01f : 0.0f,
                                (which & 2) != 0 ? slopes.data() : nullptr};
    const ScoreChange* const changes = which == 0 ? nullptr : &change;
    const bool any_half = choices.byte() % 8 == 0;
    if (choices.coin()) {
        GuardedBuffer<uint16_t> keys(elements);
        GuardedBuffer<uint16_t> values(elements);
        for (GuardedBuffer<uint16_t>* cache : {&keys, &values}) {
            for (size_t i = 0; i < elements; ++i) {
                // Any finite half below 2^8, subnormal ones included; or any half at all.
                const uint32_t past = any_half && random.integer(0, 99) == 0 ? 0x8000 : 0x5c00;
                (*cache)[i] =
                    static_cast<uint16_t>((random.bits() & 0x8000) | random.bits() % past);
            }
        }
        const CacheF16 cache = {keys.data(), values.data(), stride, ring};
        compare<float>(
            "attention_f16, " + shape, count * d, [&](const KernelTable& table, float* out) {
                table.attention_f16(queries.data(), count, &cache, d, begin, end, changes, out);
            });
        return;
    }
    GuardedBuffer<int8_t> keys(elements);
    GuardedBuffer<int8_t> values(elements);
    for (size_t i = 0; i < elements; ++i) {
        keys[i] = static_cast<int8_t>(random.integer(-127, 127));
        values[i] = static_cast<int8_t>(random.integer(-127, 127));
    }
    GuardedBuffer<float> key_scales(ring);
    GuardedBuffer<float> value_scales(ring);
    const bool any_scale = choices.byte() % 8 == 0;
    for (size_t t = 0; t < ring; ++t) {
        if (any_scale) {
            key_scales[t] = std::fabs(numbers.next());
            value_scales[t] = std::fabs(numbers.next());
            continue;
        }
        key_scales[t] = random.integer(0, 9) == 0 ? 0.0f : std::fabs(random.real(0.1f));
        value_scales[t] = random.integer(0, 9) == 0 ? 0.0f : std::fabs(random.real(0.1f));
    }
    const CacheS8 cache = {keys.data(),         values.data(), key_scales.data(),
                           value_scales.data(), stride,        ring};
    compare<float>("attention_s8, " + shape, count * d, [&](const KernelTable& table, float* out) {
        table.attention_s8(queries.data(), count, &cache, d, begin, end, changes, out);
    });
}

}  // namespace
}  // namespace awqe::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace awqe::test;
    Choices choices(data, size);
    using Operation = void (*)(Choices&);
    // The products are most of the code, so they come most often.
    static const Operation operations[] = {multiply, multiply, multiply,    attend,
                                           attend,   quantize, normalize,   gate,
                                           cap,      rotate,   store_halves};
    operations[choices.byte() % std::size(operations)](choices);
    return 0;
}
