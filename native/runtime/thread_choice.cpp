// Times the part of decoding that threads share: the model's matrices one after the other, each
// divided over the team and waited for; see thread_choice.h.
#include "native/runtime/thread_choice.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/cpu_backend.h"
#include "native/runtime/cpus.h"
#include "native/runtime/thread_pool.h"

namespace awqe {
namespace {

// A pass this long sees the memory and not the caches, and hides the clock's step.
constexpr double kPassSeconds = 0.006;
constexpr double kTotalSeconds = 0.16;
constexpr int kRounds = 5;
constexpr double kGoodEnough = 1.05;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

class Measurement {
  public:
    Measurement(const Model& model, const KernelTable& kernels, unsigned threads)
        : kernels_(kernels), threads_(threads), pool_(threads) {
        for (const std::vector<LayerWeights>* all : {&model.layers(), &model.blocks()}) {
            for (const LayerWeights& w : *all) {
                for (const Linear* linear : w.linears()) matrices_.push_back(&linear->weight);
            }
        }
        matrices_.push_back(&model.head().weight);
        size_t codes = 0;
        size_t groups = 0;
        size_t rows = 0;
        for (const PackedMatrix* w : matrices_) {
            codes = std::max(codes, round_up(w->columns, 64));
            groups = std::max<size_t>(groups, w->groups);
            rows = std::max<size_t>(rows, w->rows);
        }
        codes_.resize(codes + 63);
        scales_.resize(groups);
        sums_.resize(groups);
        out_.resize(rows);
    }

    // Warms the weights up and finds how many matrices make a pass.
    void prepare() {
        for (used_ = 1;; used_ = std::min(2 * used_, matrices_.size())) {
            pass(threads_);
            if (pass(threads_) >= kPassSeconds || used_ == matrices_.size()) return;
        }
    }

    // Seconds that `threads` threads take.
    double pass(unsigned threads) {
        auto* const aligned =
            reinterpret_cast<int8_t*>(round_up(reinterpret_cast<uintptr_t>(codes_.data()), 64));
        const Clock::time_point start = Clock::now();
        pool_.run(threads, [&](Team& team) {
            for (size_t i = 0; i < used_; ++i) {
                const PackedMatrix& w = *matrices_[i];
                const QuantizedRows x = {aligned, scales_.data(), sums_.data(),
                                         round_up(w.columns, 64), w.groups};
                const size_t blocks = (w.rows + kBlockRows - 1) / kBlockRows;
                team.share(blocks, 1, [&](size_t begin, size_t end) {
                    kernels_.gemv[w.bits](&w, &x, out_.data(), begin * kBlockRows,
                                          std::min<size_t>(end * kBlockRows, w.rows));
                });
            }
        });
        return seconds_since(start);
    }

  private:
    const KernelTable& kernels_;
    const unsigned threads_;
    ThreadPool pool_;
    std::vector<const PackedMatrix*> matrices_;
    size_t used_ = 0;
    std::vector<int8_t> codes_;  // all zero: the time does not depend on them
    std::vector<float> scales_;
    std::vector<int32_t> sums_;
    std::vector<float> out_;
};

// 1, 2, 3, 4, 6, 8, 12, 16, ... and `most`.
std::vector<unsigned> candidates(unsigned most) {
    std::vector<unsigned> all;
    for (unsigned n = 1; n < most; n = n < 3 ? n + 1 : (n & (n - 1)) == 0 ? n + n / 2 : n / 3 * 4) {
        all.push_back(n);
    }
    all.push_back(most);
    return all;
}

}  // namespace

unsigned measure_decode_threads(const Model& model, const char* kernels) {
    const KernelTable& table = *table_called(kernels);
    const unsigned most = default_threads();
    if (most == 1) return 1;
    const Clock::time_point start = Clock::now();
    model.expect_use();
    Measurement measurement(model, table, most);
    measurement.prepare();
    const std::vector<unsigned> counts = candidates(most);
    std::vector<double> best(counts.size(), std::numeric_limits<double>::infinity());
    // The best of several passes: other programs only ever slow one down. In turn, so that a busy
    // moment meets all counts.
    for (int round = 0; round < kRounds; ++round) {
        for (size_t i = 0; i < counts.size(); ++i) {
            best[i] = std::min(best[i], measurement.pass(counts[i]));
        }
        if (seconds_since(start) > kTotalSeconds) break;
    }
    const double fastest = *std::min_element(best.begin(), best.end());
    size_t chosen = 0;
    while (best[chosen] > fastest * kGoodEnough) ++chosen;
    return counts[chosen];
}

}  // namespace awqe
