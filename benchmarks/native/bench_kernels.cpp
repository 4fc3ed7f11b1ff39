// How fast the matrix products of every kernel table are, beside what bounds them: the read
// bandwidth for one token, measured in turn with the kernels in the same run; tokens per second of
// 2 to 8 rows together over those of one, for weights that come from memory; and multiply-adds per
// second for many tokens. It ends with 1 if a product drew more than the read bandwidth.
//
//   bench_kernels [threads] [table] [rows] [columns] [tokens] [group size] [bits]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"
#include "native/runtime/bandwidth.h"

namespace awqe {
namespace {

constexpr size_t kGemvBytes = size_t{192}
                              << 20;  // several times any last-level cache of the machines we know
constexpr int kRepeats = 7;           // odd, so that the median is one of them
constexpr double kHighestShare = 1.05;  // what is more is no noise of medians in turn
constexpr size_t kMostFew = 8;          // tokens of several sequences that are decoded together

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

// Runs part(0) ... part(threads - 1), each in a thread of its own. The processor time of the
// slowest one, in seconds: time in which another program had its core does not count.
double seconds_in_parallel(int threads, const std::function<void(int)>& part) {
    std::vector<double> seconds(static_cast<size_t>(threads));
    const auto timed = [&](int i) {
        timespec begin;
        timespec end;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        part(i);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        seconds[static_cast<size_t>(i)] = static_cast<double>(end.tv_sec - begin.tv_sec) +
                                          1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(timed, i);
    timed(0);
    for (std::thread& t : others) t.join();
    return *std::max_element(seconds.begin(), seconds.end());
}

uint32_t next_random(uint32_t* state) { return *state = *state * 1664525u + 1013904223u; }

struct Bytes {
    explicit Bytes(size_t n) : size((n + 4095) / 4096 * 4096) {
        data = static_cast<uint8_t*>(std::aligned_alloc(4096, size));
        uint32_t state = 1;
        for (size_t i = 0; i < size; i += 4) {
            const uint32_t word = next_random(&state);
            std::memcpy(data + i, &word, 4);
        }
    }
    ~Bytes() { std::free(data); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    uint8_t* data;
    size_t size;
};

struct Activations {
    std::vector<float> scales;
    std::vector<int32_t> sums;
    Bytes codes;
    QuantizedRows rows;

    Activations(size_t m, size_t k, size_t g)
        : scales(m * ((k + g - 1) / g), 0.01f),
          sums(scales.size()),
          codes(m * round_up(k, 64)),
          rows{reinterpret_cast<int8_t*>(codes.data), scales.data(), sums.data(), round_up(k, 64),
               (k + g - 1) / g} {
        for (size_t row = 0; row < m; ++row) {
            for (size_t i = 0; i < rows.code_stride; ++i) {
                int8_t& code = rows.codes[row * rows.code_stride + i];
                if (code == -128 || i >= k) code = 0;
                if (i < k) sums[row * rows.group_stride + i / g] += code;
            }
        }
    }
};

// Seconds that each thread's share of rows takes, the slowest one's; multiply(first row, end row).
double seconds_of_rows(int threads, size_t blocks,
                       const std::function<void(size_t, size_t)>& rows) {
    return seconds_in_parallel(threads, [&](int i) {
        const size_t parts = static_cast<size_t>(threads);
        const size_t part = static_cast<size_t>(i);
        rows(blocks * part / parts * 4, blocks * (part + 1) / parts * 4);
    });
}

// The highest share of the read bandwidth.
double bench(int threads, const char* only, size_t n, size_t k, size_t m, size_t g,
             size_t only_bits) {
    double highest = 0;
    const Bytes memory(kGemvBytes);
    const Activations x(std::max(m, kMostFew), k, g);
    std::printf("%-13s bits %7s %10s %6s", "table", "GB/s", "read GB/s", "share");
    for (size_t few = 2; few <= kMostFew; ++few) std::printf("  x%zu  ", few);
    std::printf(" %7s\n", "GMAC/s");
    size_t count = 0;
    const KernelTable* const* tables = kernel_tables(&count);
    for (size_t t = 0; t < count; ++t) {
        const KernelTable& table = *tables[t];
        if ((table.required & ~cpu_features()) != 0) continue;
        if (only[0] != '\0' && std::strcmp(only, table.name) != 0) continue;
        const bool slow = std::strcmp(table.name, "reference") == 0;
        for (const uint32_t bits : {4u, 8u, 3u, 2u, 5u, 6u}) {
            if (only_bits != 0 && only_bits != bits) continue;
            // One token: as many rows as fill the memory, so that nothing stays in a cache.
            PackedMatrix w = packed_matrix_layout(4, k, bits, static_cast<uint32_t>(g));
            const size_t blocks = memory.size / w.block_bytes / (slow ? 64 : 1);
            w.rows = blocks * 4;
            w.blocks = memory.data;
            std::vector<float> y(w.rows * kMostFew);
            std::vector<double> rates;
            std::vector<double> reads;
            std::vector<double> shares;
            std::vector<double> speedups[kMostFew + 1];
            const double bytes = static_cast<double>(blocks * w.block_bytes);
            for (int repeat = 0; repeat < (slow ? 1 : kRepeats); ++repeat) {
                reads.push_back(measure_read_bandwidth(static_cast<unsigned>(threads), kGemvBytes));
                const double one = seconds_of_rows(threads, blocks, [&](size_t begin, size_t end) {
                    table.gemv[bits](&w, &x.rows, y.data(), begin, end);
                });
                rates.push_back(bytes / one);
                shares.push_back(rates.back() / reads.back());
                for (size_t few = 2; few <= kMostFew; ++few) {
                    const double all =
                        seconds_of_rows(threads, blocks, [&](size_t begin, size_t end) {
                            table.gemm[bits](&w, &x.rows, few, y.data(), w.rows, begin, end);
                        });
                    speedups[few].push_back(static_cast<double>(few) * one / all);
                }
            }
            // Many tokens: the matrix that was asked for.
            w.rows = slow ? 16 : n;
            const size_t tokens = slow ? 4 : m;
            const size_t rows32 = (w.rows + 31) / 32;
            std::vector<float> many(tokens * w.rows);
            std::vector<double> products;
            for (int repeat = 0; repeat < (slow ? 1 : kRepeats); ++repeat) {
                const double seconds = seconds_in_parallel(threads, [&](int i) {
                    const size_t parts = static_cast<size_t>(threads);
                    const size_t part = static_cast<size_t>(i);
                    table.gemm[bits](&w, &x.rows, tokens, many.data(), w.rows,
                                     rows32 * part / parts * 32,
                                     std::min<size_t>(rows32 * (part + 1) / parts * 32, w.rows));
                });
                products.push_back(static_cast<double>(w.rows * k * tokens) / seconds);
            }
            std::printf("%-13s %4u %7.2f %10.2f %5.0f%%", table.name, bits, median(rates) / 1e9,
                        median(reads) / 1e9, 100 * median(shares));
            for (size_t few = 2; few <= kMostFew; ++few) {
                std::printf(" %5.2f", median(speedups[few]));
            }
            std::printf(" %7.1f\n", median(products) / 1e9);
            highest = std::max(highest, median(shares));
            std::fflush(stdout);
        }
    }
    return highest;
}

size_t number(int argc, char** argv, int index, size_t otherwise) {
    return argc > index ? std::strtoul(argv[index], nullptr, 10) : otherwise;
}

}  // namespace
}  // namespace awqe

int main(int argc, char** argv) {
    using awqe::number;
    const double highest = awqe::bench(static_cast<int>(number(argc, argv, 1, 1)),
                                       argc > 2 ? argv[2] : "", number(argc, argv, 3, 2048),
                                       number(argc, argv, 4, 2048), number(argc, argv, 5, 512),
                                       number(argc, argv, 6, 128), number(argc, argv, 7, 0));
    if (highest <= awqe::kHighestShare) return 0;
    std::printf("A product drew %.2f times what was measured: the measured rate is no ceiling.\n",
                highest);
    return 1;
}
