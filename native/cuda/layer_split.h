// A model whose first layers the CPU computes and whose last ones, with the head, the GPU: what the
// stream is between them goes from one to the other, so the bits are those of either alone. Owns
// the two backends and how many layers each has.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "native/cuda/cuda_backend.h"
#include "native/runtime/backend.h"
#include "native/runtime/cpu_backend.h"

namespace awqe::cuda {

class LayerSplit : public Backend {
  public:
    // `first_layer`: of those that the GPU computes, neither 0 nor the number of layers. `model`
    // outlives it. Throws Failure.
    LayerSplit(const Model& model, size_t first_layer, const KernelTable& kernels);

    const char* name() const override { return name_.c_str(); }
    size_t block_rows() const override { return kBlockTokens; }
    bool sees_ahead() const override { return false; }
    size_t cache_bytes(const SequencePlan& plan) const override;
    size_t scratch_bytes(const SequencePlan& plan) const override;
    std::unique_ptr<Sequence> open(const SequencePlan& plan) override;
    void evaluate(const Block& block) override;

  private:
    class SplitSequence;

    const size_t hidden_size_;
    const std::string name_;
    CpuBackend cpu_;
    CudaBackend gpu_;
    std::mutex mutex_;
    std::vector<float> stream_;  // [kBlockTokens, hidden]: between the two
};

// What the GPU would take of a model: its last layers and the head.
struct GpuShare {
    size_t layers;  // 0: it has no room, neither for as many as asked for nor, where it may choose,
                    // for any; then `need` is that of the fewest
    GpuNeed need;
    uint64_t free_bytes;
};

// By the plan's gpu_layers. Allocates nothing but the driver's context. Throws Failure with
// AWQE_UNSUPPORTED where there is no GPU, or none that computes this model.
GpuShare gpu_share(const Model& model, const SequencePlan& plan);

// How many of the last layers the GPU takes for a sequence of this plan, by its gpu_layers. Throws
// Failure with AWQE_OUT_OF_MEMORY, with the numbers, where it has no room for as many as asked for,
// or for any.
size_t layers_on_gpu(const Model& model, const SequencePlan& plan);

}  // namespace awqe::cuda
