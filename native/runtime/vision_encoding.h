// Encoding pictures: from pixels to embeddings that a session reads in the place of tokens'. Owns
// the working memory, which is there only as long as the encoding, and the division into parts
// between which a caller may stop. Computes on the CPU, whatever device the sessions have: the bits
// are the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "native/runtime/arena.h"
#include "native/runtime/cpu_backend.h"
#include "native/runtime/open_model.h"
#include "native/runtime/vision_tower.h"

namespace awqe {

// The vision part of a model; a model without one is AWQE_UNSUPPORTED.
const VisionModel& need_vision(const Model& model);

// Of pictures of so many pixels; 0 x 0: squares of image_size. What no picture of the model has is
// AWQE_INVALID_ARGUMENT.
VisionShape need_shape(const VisionModel& vision, uint32_t height, uint32_t width);

// Bytes that an encoding takes beside the pictures and embeddings.
size_t encoding_bytes(const VisionModel& vision, const VisionShape& shape, unsigned threads);

class VisionEncoding {
  public:
    // pixels: [count, height, width, 3]; embeddings: float [count, tokens, embedding_size], to be
    // filled; both the caller's, until the end. `kernels`: a table's name, or NULL or "" for the
    // best one. Throws Failure.
    VisionEncoding(std::shared_ptr<const OpenModel> model, const char* kernels, unsigned threads,
                   const uint8_t* pixels, size_t count, const VisionShape& shape,
                   float* embeddings);

    // Parts of the work: the patches of a picture, each layer, what stands behind them.
    size_t total() const { return count_ * parts_; }
    size_t done() const { return done_; }
    // Computes the next part. Throws Failure with AWQE_OUT_OF_MEMORY. Not when all are done.
    void step();

  private:
    const std::shared_ptr<const OpenModel> open_model_;
    const VisionModel& vision_;
    CpuBackend& backend_;
    const unsigned threads_;
    const uint8_t* const pixels_;
    const size_t count_;
    const VisionShape shape_;
    float* const embeddings_;
    const size_t parts_;  // of one picture
    const PageRegion pages_;
    const VisionActivations activations_;
    size_t done_ = 0;
};

}  // namespace awqe
