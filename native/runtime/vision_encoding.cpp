// Memory, threads and the parts of an encoding; see vision_encoding.h.
#include "native/runtime/vision_encoding.h"

#include <algorithm>
#include <utility>

#include "native/failure/failure.h"

namespace awqe {

constexpr size_t kMaxPatches = 1u << 16;

const VisionModel& need_vision(const Model& model) {
    if (model.vision() == nullptr) {
        fail(AWQE_UNSUPPORTED,
             "this model has no vision part, so that it reads no pictures: convert one that has a "
             "vision tower");
    }
    return *model.vision();
}

VisionShape need_shape(const VisionModel& vision, uint32_t height, uint32_t width) {
    const VisionArchitecture& a = vision.architecture;
    const uint32_t side = a.image_size;
    if (height == 0 && width == 0) height = width = side;
    if (!a.rotary) {
        if (height != side || width != side) {
            fail(AWQE_INVALID_ARGUMENT, "pictures are %u x %u pixels, this model reads %u x %u",
                 height, width, side, side);
        }
        return {a.grid(), a.grid(), side};
    }
    const uint32_t step = a.patch_size * a.regroup;
    if (height == 0 || width == 0 || height % step != 0 || width % step != 0 || height > side ||
        width > side) {
        fail(AWQE_INVALID_ARGUMENT,
             "pictures are %u x %u pixels, this model reads multiples of %u up to %u", height,
             width, step, side);
    }
    const VisionShape shape = {height / a.patch_size, width / a.patch_size, width};
    if (shape.patches() > kMaxPatches) {
        fail(AWQE_INVALID_ARGUMENT,
             "pictures are %u x %u pixels, which is %zu patches; at most %zu "
             "are allowed",
             height, width, shape.patches(), kMaxPatches);
    }
    return shape;
}

size_t encoding_bytes(const VisionModel& vision, const VisionShape& shape, unsigned threads) {
    Arena counting;
    VisionActivations(vision, shape, threads, counting);
    return counting.used();
}

VisionEncoding::VisionEncoding(std::shared_ptr<const OpenModel> model, const char* kernels,
                               unsigned threads, const uint8_t* pixels, size_t count,
                               const VisionShape& shape, float* embeddings)
    : open_model_(std::move(model)),
      vision_(need_vision(open_model_->model())),
      backend_(open_model_->cpu_backend(kernels)),
      threads_(threads),
      pixels_(pixels),
      count_(count),
      shape_(shape),
      embeddings_(embeddings),
      parts_(vision_.layers.size() + vision_.resampler.size() + 2),
      pages_(encoding_bytes(vision_, shape, threads), PageSize::kSmall),
      activations_([&] {
          Arena arena(pages_);
          return VisionActivations(vision_, shape_, threads, arena);
      }()) {
    open_model_->model().expect_use();
}

void VisionEncoding::step() {
    const VisionArchitecture& a = vision_.architecture;
    const size_t picture = done_ / parts_;
    const size_t part = done_ % parts_;
    const size_t height =
        a.rotary ? shape_.height * a.patch_size : a.image_size;  // a square's rest is there too
    const size_t tokens = a.for_blocks ? a.tokens()
                                       : size_t{a.pooled(static_cast<uint32_t>(shape_.height))} *
                                             a.pooled(static_cast<uint32_t>(shape_.width));
    const size_t layers = vision_.layers.size();
    const uint8_t* const pixels = pixels_ + picture * height * shape_.line * 3;
    float* const embeddings = embeddings_ + picture * tokens * vision_.embedding_size;
    backend_.pool().run(threads_, [&](Team& team) {
        VisionStep step(vision_, shape_, activations_, backend_.kernels(), team);
        if (part == 0) {
            enter_tower(step, pixels);
            if (a.resampler) enter_resampler(step);
        } else if (part <= layers) {
            tower_layer(step, part - 1);
            const auto tap = std::find(a.taps.begin(), a.taps.end(), part - 1);
            if (tap != a.taps.end()) {
                leave_by_tap(step, static_cast<size_t>(tap - a.taps.begin()), embeddings);
            }
        } else if (part + 1 < parts_) {
            resampler_layer(step, part - 1 - layers);
        } else if (a.for_blocks) {
            leave_for_blocks(step, embeddings);
        } else {
            leave_tower(step, embeddings);
        }
    });
    ++done_;
}

}  // namespace awqe
