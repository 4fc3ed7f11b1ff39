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

class CudaBackend : public Backend {
  public:
    // Copies the weights. `model` outlives it. Throws Failure: AWQE_UNSUPPORTED where there is no
    // usable GPU, AWQE_OUT_OF_MEMORY where the model does not fit, with the numbers.
    explicit CudaBackend(const Model& model);
    ~CudaBackend() override;

    const char* name() const override { return "cuda"; }
    size_t block_rows() const override;
    bool places_rows() const override { return false; }
    size_t cache_bytes(const SequencePlan& plan) const override;
    size_t scratch_bytes(const SequencePlan& plan) const override;
    std::unique_ptr<Sequence> open(const SequencePlan& plan) override;
    void evaluate(const Block& block) override;

  private:
    class CudaSequence;

    Step& step_for(KvType type);
    void evaluate_type(const Block& block, KvType type);

    const Model& model_;
    const std::shared_ptr<Device> device_;
    const int process_;  // a context does not survive a fork
    std::mutex mutex_;
    std::unique_ptr<Weights> weights_;
    std::unique_ptr<Step> steps_[2];  // for caches of fp16 and of int8, made when one is opened
    std::vector<const awqe::Row*> pass_;
};

}  // namespace awqe::cuda
