// One forward pass on the GPU over rows of any sequences: runtime/forward.cpp's order of operations
// as launches. Owns the arrays between the operations and the graphs of recorded passes; which
// kernel computes what stands in step.cpp alone.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "native/cuda/device.h"
#include "native/cuda/launches.h"
#include "native/cuda/weights.h"

namespace awqe::cuda {

using awqe_cuda::Likeliest;
using awqe_cuda::Row;

// Neighbouring rows of one sequence, positions ascending by one.
struct Run {
    unsigned first;
    unsigned count;
    bool on_tensor_cores;  // its attention, where it is a prompt
    bool has_room;         // its sequence, for a row behind these
};

// Numbers of a row that somebody asked for: logits, or what the head reads.
struct Wanted {
    unsigned row;
    float* numbers;        // float [vocabulary] or [hidden], in host memory; or NULL
    Likeliest* likeliest;  // or NULL; of a row that keeps its logits
};

// What becomes of a pass's logits: some rows keep them, some hand them out.
struct Answers {
    bool kept;
    bool handed_out;

    auto operator<=>(const Answers&) const = default;
};

// Rows that are multiplied: quantised already, or floats whose norm or themselves are.
struct Source {
    Activations codes;  // quantised, or where they come
    const float* x;     // NULL: quantised
    NormWeights norm;   // its weight NULL: there is none
};

class Step {
  public:
    // Room for `rows` rows of sequences with caches of this shape; `a` has the layers that
    // `weights` has, of which the first `taps` take up pictures again. The context is current.
    Step(std::shared_ptr<const Device> device, const Architecture& a, const Weights& weights,
         const CacheShape& cache, size_t rows, size_t taps);
    ~Step();

    // Waits for what runs ahead, and forgets it: before somebody else touches a sequence's memory.
    void settle() noexcept;

    // Bytes of device memory that a step takes.
    static uint64_t bytes(const Architecture& a, size_t rows, size_t taps);

    // Computes `rows`, stores their keys and values, and gives logits, or the likeliest token, of
    // the rows that `wanted` names, and of those that `hidden` names what the head reads.
    // `embeddings`: empty, or per row float [(1 + taps) * hidden] in the place of its token's, or
    // NULL. Where the first layers are somebody else's, of every row its stream behind them.
    void run(const std::vector<Row>& rows, const std::vector<Run>& runs,
             const std::vector<Wanted>& wanted, const std::vector<Wanted>& hidden = {},
             const std::vector<const float*>& embeddings = {});

  private:
    struct Arrays;

    Launches launches() const { return {*device_, stream_.get(), *kernels_}; }

    // `wanted`: NULL where all rows are wanted and their logits go to staged memory.
    void enqueue(size_t m, const std::vector<Run>& runs, const std::vector<Wanted>* wanted,
                 Answers answers, unsigned chunks);
    void attend(size_t m, const std::vector<Run>& runs, int layer, unsigned chunks,
                const awqe_cuda::FreshRows& fresh);
    void begin(size_t m);
    bool goes_on() const { return weights_.embedding().columns == 0; }
    bool walks(const Matrix& w, size_t m) const { return m == 1 && launches().walks(w); }
    void walk_row(int epilogue, const Products& products, const Source& x);
    void multiply(std::vector<std::pair<const Matrix*, float*>> products, const Source& from,
                  size_t m, bool add);
    void add_to_stream(const Matrix& w, const NormWeights& post_norm, const Source& x, size_t m);
    void attention(size_t m, const std::vector<Run>& runs, size_t layer, unsigned chunks);
    Source activate(const Matrix& gate, const Matrix& up, const Matrix& down, const float* scales,
                    const Source& x, size_t m);
    void feed_forward(size_t m, size_t layer);
    void add_tap(size_t m, size_t number);
    void mixture_of_experts(size_t m, size_t layer);
    void keep(const std::vector<Wanted>& wanted, unsigned* staged);
    void head(size_t m, const std::vector<Wanted>* wanted, Answers answers);
    void hand_out(const std::vector<Wanted>& wanted, const std::vector<Row>& rows) const;
    void hand_out_hidden(const std::vector<Wanted>& hidden);
    GraphExec recorded(size_t m, const std::vector<Run>& runs, Answers answers, unsigned chunks);
    void forget_graphs();
    unsigned chunks_of(const Row& row, uint32_t window) const;
    unsigned chunks_of(const std::vector<Row>& rows) const;
    unsigned recorded_chunks(unsigned chunks) const;
    bool run_ahead(const std::vector<Row>& rows, Answers answers, bool begun);
    void foretell(const std::vector<Row>& rows, const std::vector<Wanted>& wanted);

    std::shared_ptr<const Device> device_;
    const Architecture& a_;
    const Weights& weights_;
    const CacheShape cache_;
    const size_t taps_;
    const float* const* embeddings_ = nullptr;  // of the pass that is being enqueued
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Arrays> arrays_;
    // By rows, chunks and what they answer.
    std::map<std::tuple<size_t, unsigned, Answers>, GraphExec> graphs_;
    // What follows the last pass if every row's sequence goes on with its likeliest token; how many
    // passes in a row were foretold so; whether the next one is on its way, with its end.
    std::vector<Row> foretold_;
    unsigned followed_ = 0;
    bool ahead_ = false;
    OwnedEvent ends_[2];
    size_t end_of_ahead_ = 0;
    OwnedStream stream_;  // the last: what is on its way uses the rest
};

}  // namespace awqe::cuda
