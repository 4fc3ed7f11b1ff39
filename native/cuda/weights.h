// A model's weights where the GPU reads them: the file mapping itself where CPU and GPU share one
// memory, otherwise copies of the blocks as they lie in the file. Owns that memory; knows no step.
#pragma once

#include <memory>
#include <vector>

#include "native/cuda/device.h"
#include "native/cuda/kernels/vector_types.h"
// The device's structures, with device addresses in their pointers.
#include "native/cuda/kernels/parameters.h"
#include "native/runtime/model.h"

namespace awqe::cuda {

using awqe_cuda::Matrix;

// Device addresses of runtime/model.h's LayerWeights.
struct LayerAddresses {
    const float* attention_norm;
    Matrix query;
    Matrix key;
    Matrix value;
    const float* query_norm;  // or NULL
    const float* key_norm;    // or NULL
    Matrix attention_output;
    const float* feed_forward_norm;
    Matrix gate;
    Matrix up;
    Matrix down;
};

class Weights {
  public:
    // The device's context is current. Throws Failure, with AWQE_OUT_OF_MEMORY before anything is
    // copied where the GPU has less room than the model needs.
    Weights(std::shared_ptr<const Device> device, const Model& model);

    // Bytes that the GPU holds of `model`.
    static uint64_t bytes(const Model& model);

    const Matrix& embedding() const { return embedding_; }
    const std::vector<LayerAddresses>& layers() const { return layers_; }
    const float* output_norm() const { return output_norm_; }
    const Matrix& head() const { return head_; }
    const float* inverse_frequencies() const { return inverse_frequencies_; }

  private:
    std::vector<Buffer> buffers_;
    Matrix embedding_;
    std::vector<LayerAddresses> layers_;
    const float* output_norm_;
    Matrix head_;
    const float* inverse_frequencies_;
};

}  // namespace awqe::cuda
