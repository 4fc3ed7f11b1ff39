// The backend of an NVIDIA GPU: the same file, the same bits. Owns the weights on the device and
// the caches of sequences; the pass itself is step.h's. One evaluation at a time, as the GPU
// computes one at a time.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "native/cuda/device.h"
#include "native/cuda/step.h"
#include "native/cuda/weights.h"
#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe::cuda {

// Bytes of the GPU's memory that layers and one sequence take.
struct GpuNeed {
    uint64_t weights;
    uint64_t cache;
    uint64_t work;

    uint64_t total() const { return weights + cache + work; }
};

// Layers that take up pictures again: the first ones, which are computed in one place.
inline size_t taps_of(const Model& model) {
    return model.row_size() / model.architecture().hidden_size - 1;
}

// Of the layers from `first_layer` on and the head.
GpuNeed gpu_need(const Model& model, const SequencePlan& plan, size_t first_layer,
                 const DeviceFacts& facts);

class CudaBackend : public Backend {
  public:
    // Takes the weights of the layers from `first_layer` on, and of the head. Where that is not the
    // first one, a row's embedding is its stream behind the layers before. `model` outlives it.
    // Whether there is room for them is layer_split.h's question. Throws Failure with
    // AWQE_UNSUPPORTED where there is no usable GPU.
    CudaBackend(const Model& model, size_t first_layer);
    ~CudaBackend() override;

    const char* name() const override { return "cuda"; }
    size_t block_rows() const override;
    bool sees_ahead() const override { return false; }
    size_t cache_bytes(const SequencePlan& plan) const override;
    size_t scratch_bytes(const SequencePlan& plan) const override;
    std::unique_ptr<Sequence> open(const SequencePlan& plan) override;
    void evaluate(const Block& block) override;

  private:
    class CudaSequence;

    Step& step_for(KvType type);
    void settle() noexcept;
    void evaluate_type(const Block& block, KvType type);

    const std::shared_ptr<Device> device_;
    const Architecture architecture_;  // of its layers alone
    const size_t rows_;                // of a pass
    const size_t taps_;                // of its layers
    const int process_;                // a context does not survive a fork
    std::mutex mutex_;
    std::unique_ptr<Weights> weights_;
    std::unique_ptr<Step> steps_[2];  // for caches of fp16 and of int8, made when one is opened
    std::vector<const awqe::Row*> pass_;
};

}  // namespace awqe::cuda
