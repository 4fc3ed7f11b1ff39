// What the checks of selftest.h share: arrays on the GPU that can be compared, random numbers, rows
// as the reference and as the GPU quantise them. Owns nothing that a model uses.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "native/cuda/launches.h"
#include "native/kernels/kernel_table.h"

namespace awqe::cuda {

using awqe_cuda::Row;

// The same numbers on every machine.
class Random {
  public:
    explicit Random(uint32_t seed) : bits_(seed) {}
    uint32_t bits() { return static_cast<uint32_t>(bits_()); }
    uint32_t below(uint32_t end) { return bits() % end; }
    // -limit ... limit
    float real(float limit) { return (static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f) * limit; }
    std::vector<float> reals(size_t count, float limit) {
        std::vector<float> numbers(count);
        for (float& number : numbers) number = real(limit);
        return numbers;
    }

  private:
    std::mt19937 bits_;
};

// One run of the self-test: launches in a stream of its own, and what the present kernel gave.
struct Trial {
    Trial(std::shared_ptr<const Device> on, const KernelTable& table)
        : device(std::move(on)),
          reference(table),
          kernels{*device},
          stream(open_stream(device->driver())) {}

    Launches launches() { return {*device, stream.get(), kernels}; }
    Launcher launch() const { return {*device, stream.get()}; }
    void finish() const {
        check(device->driver().cuStreamSynchronize(stream.get()), "finish a kernel");
    }
    void count(bool same) {
        ++cases;
        if (!same) ++differing;
    }

    const std::shared_ptr<const Device> device;
    const KernelTable& reference;
    Kernels kernels;
    OwnedStream stream;
    uint32_t cases = 0;
    uint32_t differing = 0;
};

constexpr unsigned char kFill = 0x5a;  // of what nobody has written

template <class T>
std::vector<T> filled(size_t count) {
    std::vector<T> numbers(count);
    std::memset(static_cast<void*>(numbers.data()), kFill, count * sizeof(T));
    return numbers;
}

// An array on the GPU, and behind it bytes that belong to nobody: what is written there is a
// difference too. As many as kernels read behind a matrix.
template <class T>
class DeviceArray {
  public:
    DeviceArray(const Trial& trial, const std::vector<T>& numbers)
        : trial_(trial), memory_(trial.device, numbers.size() * sizeof(T) + kReadBehind) {
        std::vector<unsigned char> bytes(memory_.bytes(), kFill);
        if (!numbers.empty()) {
            std::memcpy(bytes.data(), numbers.data(), numbers.size() * sizeof(T));
        }
        check(trial_.device->driver().cuMemcpyHtoDAsync_v2(memory_.address(), bytes.data(),
                                                           bytes.size(), trial_.stream.get()),
              "copy an input");
        trial_.finish();
    }

    T* get() const { return memory_.as<T>(); }
    const T* in() const { return get(); }

    std::vector<T> read() const { return read_at<T>((memory_.bytes() - kReadBehind) / sizeof(T)); }
    // Whether it holds these numbers and nothing behind them.
    bool is(const std::vector<T>& expected) const {
        const std::vector<unsigned char> bytes = read_at<unsigned char>(memory_.bytes());
        const size_t size = expected.size() * sizeof(T);
        if (size + kReadBehind != bytes.size()) return false;
        if (size > 0 && std::memcmp(bytes.data(), expected.data(), size) != 0) return false;
        for (size_t i = size; i < bytes.size(); ++i) {
            if (bytes[i] != kFill) return false;
        }
        return true;
    }

  private:
    template <class As>
    std::vector<As> read_at(size_t count) const {
        trial_.finish();
        std::vector<As> numbers(count);
        check(trial_.device->driver().cuMemcpyDtoH_v2(numbers.data(), memory_.address(),
                                                      count * sizeof(As)),
              "hand out a result");
        return numbers;
    }

    const Trial& trial_;
    Buffer memory_;
};

// Where code i of a single row lies on the GPU: see Activations in kernels/parameters.h.
inline size_t place_in_units(size_t i) {
    const size_t chunk = i / kChunk;
    constexpr size_t kEach = awqe_cuda::kUnitChunks;
    return chunk / kEach * kUnitInputs + i % kChunk / 16 * (kEach * 16) + chunk % kEach * 16 +
           i % 16;
}

// m rows of k inputs as the reference quantises them; groups of padding are zeros.
struct HostRows {
    HostRows(const KernelTable& table, const std::vector<float>& x, size_t rows, size_t inputs,
             size_t group)
        : m(rows),
          k(inputs),
          group_size(group),
          code_stride(round_up(k, kUnitInputs)),
          group_stride(code_stride / group),
          codes(m * code_stride),
          scales(m * group_stride),
          sums(m * group_stride) {
        const QuantizedRows to = quantized();
        for (size_t row = 0; row < m; ++row) {
            table.quantize_act(x.data() + row * k, k, group_size, &to, row);
        }
    }

    QuantizedRows quantized() {
        return {codes.data(), scales.data(), sums.data(), code_stride, group_stride};
    }

    // As the GPU keeps them.
    std::vector<signed char> device_codes() const {
        std::vector<signed char> placed(codes.size());
        for (size_t i = 0; i < codes.size(); ++i) placed[m == 1 ? place_in_units(i) : i] = codes[i];
        return placed;
    }
    std::vector<int2> device_side() const {
        std::vector<int2> side(scales.size());
        for (size_t i = 0; i < side.size(); ++i) {
            std::memcpy(&side[i].x, &scales[i], sizeof(float));
            side[i].y = sums[i];
        }
        return side;
    }

    const size_t m;
    const size_t k;
    const size_t group_size;
    const size_t code_stride;
    const size_t group_stride;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
};

// Quantised rows on the GPU.
struct DeviceRows {
    DeviceRows(const Trial& trial, const HostRows& host)
        : codes(trial, host.device_codes()),
          side(trial, host.device_side()),
          rows(activations(codes.get(), side.get(), host.k, static_cast<int>(host.group_size))) {}
    // Where they come: in memory that holds something else.
    DeviceRows(const Trial& trial, size_t m, size_t k, size_t group_size)
        : codes(trial, filled<signed char>(m * round_up(k, kUnitInputs))),
          side(trial, filled<int2>(m * (round_up(k, kUnitInputs) / group_size))),
          rows(activations(codes.get(), side.get(), k, static_cast<int>(group_size))) {}

    bool is(const HostRows& expected) const {
        return codes.is(expected.device_codes()) && side.is(expected.device_side());
    }

    DeviceArray<signed char> codes;
    DeviceArray<int2> side;
    const Activations rows;
};

// A packed matrix of random codes, or of codes as large or as far below the zero-points as can be:
// the sums at which a narrow accumulator would overflow.
struct TrialMatrix {
    enum class Codes { kRandom, kLargest, kSmallest };

    TrialMatrix(const Trial& trial, size_t rows, size_t columns, uint32_t bits, uint32_t group_size,
                Codes codes, bool biased, Random& random);

    // out: float [m, rows], as the reference has it, with the bias.
    std::vector<float> times(const KernelTable& table, HostRows& x) const;

    PackedMatrix packed;
    std::vector<uint8_t> blocks;
    std::vector<float> bias;
    DeviceArray<uint8_t> on_gpu;
    DeviceArray<float> bias_on_gpu;
    Matrix matrix;
};

}  // namespace awqe::cuda
