// A model's weights where the GPU reads them: the file mapping itself where CPU and GPU share one
// memory and the driver goes along, otherwise copies of the blocks as they lie in the file. Owns
// that memory; knows no step.
#pragma once

#include <memory>
#include <vector>

#include "native/cuda/device.h"
#include "native/cuda/in_place.h"
#include "native/cuda/kernels/vector_types.h"
// The device's structures, with device addresses in their pointers.
#include "native/cuda/kernels/parameters.h"
#include "native/runtime/model.h"

namespace awqe::cuda {

using awqe_cuda::Matrix;
using awqe_cuda::NormWeights;

// Bytes behind the copies of a buffer: kernels/walk.cuh reads the scales and zero-points of whole
// units, which a short row's last block does not have.
constexpr size_t kReadBehind = 512;

// A matrix on the device without its addresses.
Matrix shape_of(const PackedMatrix& w);

// Device addresses of runtime/model.h's FeedForward of an expert.
struct ExpertAddresses {
    Matrix gate;
    Matrix up;
    Matrix down;
};

// Device addresses of runtime/model.h's LayerWeights.
struct LayerAddresses {
    NormWeights attention_norm;
    Matrix query;
    Matrix key;
    Matrix value;
    NormWeights query_norm;
    NormWeights key_norm;
    Matrix attention_output;
    NormWeights attention_post_norm;
    NormWeights feed_forward_norm;
    Matrix gate;  // no rows if there is none
    Matrix up;
    Matrix down;
    const float* activation_scales;  // or NULL
    const float* router;             // [experts, hidden]; NULL: the layer has no experts
    std::vector<ExpertAddresses> experts;
    ExpertAddresses shared;      // no rows if there is none
    const float* shared_router;  // [hidden], or NULL
    NormWeights feed_forward_post_norm;
};

class Weights {
  public:
    // Those of the layers from `first_layer` on and of the head; with the first layer also of what
    // is in front of it. The device's context is current. Throws Failure.
    Weights(std::shared_ptr<const Device> device, const Model& model, size_t first_layer);

    // Bytes that the GPU holds of `model`, or that are kept in memory for it.
    static uint64_t bytes(const Model& model, size_t first_layer);

    // Of no columns where the first layers are somebody else's.
    const Matrix& embedding() const { return embedding_; }
    const std::vector<LayerAddresses>& layers() const { return layers_; }
    const NormWeights& embedding_norm() const { return embedding_norm_; }
    const float* learned_positions() const { return learned_positions_; }  // or NULL
    const NormWeights& output_norm() const { return output_norm_; }
    const Matrix& head() const { return head_; }
    const float* inverse_frequencies() const { return inverse_frequencies_; }  // of all tables
    const float* alibi_slopes() const { return alibi_slopes_; }                // or NULL

  private:
    Weights() = default;
    template <class Place>
    void fill(const Model& model, size_t first_layer, const Place& placed);

    InPlace in_place_;
    std::vector<Buffer> buffers_;
    Matrix embedding_;
    std::vector<LayerAddresses> layers_;
    NormWeights embedding_norm_;
    const float* learned_positions_;
    NormWeights output_norm_;
    Matrix head_;
    const float* inverse_frequencies_;
    const float* alibi_slopes_;
};

}  // namespace awqe::cuda
