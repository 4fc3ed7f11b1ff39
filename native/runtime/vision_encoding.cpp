// Memory, threads and the parts of an encoding; see vision_encoding.h.
#include "native/runtime/vision_encoding.h"

#include <utility>

#include "native/failure/failure.h"

namespace awqe {

const VisionModel& need_vision(const Model& model) {
    if (model.vision() == nullptr) {
        fail(AWQE_UNSUPPORTED,
             "this model has no vision part, so that it reads no pictures: convert one that has a "
             "vision tower");
    }
    return *model.vision();
}

size_t encoding_bytes(const VisionModel& vision, unsigned threads) {
    Arena counting;
    VisionActivations(vision, threads, counting);
    return counting.used();
}

VisionEncoding::VisionEncoding(std::shared_ptr<const OpenModel> model, const char* kernels,
                               unsigned threads, const uint8_t* pixels, size_t count,
                               float* embeddings)
    : open_model_(std::move(model)),
      vision_(need_vision(open_model_->model())),
      backend_(open_model_->cpu_backend(kernels)),
      threads_(threads),
      pixels_(pixels),
      count_(count),
      embeddings_(embeddings),
      parts_(vision_.layers.size() + 2),
      pages_(encoding_bytes(vision_, threads), PageSize::kSmall),
      activations_([&] {
          Arena arena(pages_);
          return VisionActivations(vision_, threads, arena);
      }()) {
    open_model_->model().expect_use();
}

void VisionEncoding::step() {
    const VisionArchitecture& a = vision_.architecture;
    const size_t picture = done_ / parts_;
    const size_t part = done_ % parts_;
    const uint8_t* const pixels = pixels_ + picture * a.image_size * a.image_size * 3;
    float* const embeddings = embeddings_ + picture * a.tokens() * vision_.embedding_size;
    backend_.pool().run(threads_, [&](Team& team) {
        VisionStep step(vision_, activations_, backend_.kernels(), team);
        if (part == 0) {
            enter_tower(step, pixels);
        } else if (part + 1 < parts_) {
            tower_layer(step, vision_.layers[part - 1]);
        } else {
            leave_tower(step, embeddings);
        }
    });
    ++done_;
}

}  // namespace awqe
