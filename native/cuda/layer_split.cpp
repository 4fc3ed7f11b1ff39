// First the CPU, then the GPU; see layer_split.h.
#include "native/cuda/layer_split.h"

#include <algorithm>

#include "native/failure/failure.h"

namespace awqe::cuda {
namespace {

std::string name_of(const Model& model, size_t first_layer, const KernelTable& kernels) {
    const size_t layers = model.layers().size();
    return std::to_string(layers - first_layer) + " of " + std::to_string(layers) +
           " layers on cuda, the others on " + kernels.name;
}

}  // namespace

class LayerSplit::SplitSequence final : public Sequence {
  public:
    SplitSequence(std::unique_ptr<Sequence> on_cpu, std::unique_ptr<Sequence> on_gpu)
        : cpu(std::move(on_cpu)), gpu(std::move(on_gpu)) {}

    size_t earliest(size_t stored) const override {
        return std::max(cpu->earliest(stored), gpu->earliest(stored));
    }
    bool saved_all(size_t end) const override { return cpu->saved_all(end) && gpu->saved_all(end); }
    // Saved layer by layer.
    size_t saved_bytes(size_t begin, size_t end) const override {
        return cpu->saved_bytes(begin, end) + gpu->saved_bytes(begin, end);
    }
    void save(size_t begin, size_t end, uint8_t* bytes) const override {
        cpu->save(begin, end, bytes);
        gpu->save(begin, end, bytes + cpu->saved_bytes(begin, end));
    }
    void restore(size_t begin, size_t end, const uint8_t* bytes) override {
        cpu->restore(begin, end, bytes);
        gpu->restore(begin, end, bytes + cpu->saved_bytes(begin, end));
    }

    const KeptLogits* kept_logits() const override { return gpu->kept_logits(); }

    const std::unique_ptr<Sequence> cpu;
    const std::unique_ptr<Sequence> gpu;
};

LayerSplit::LayerSplit(const Model& model, size_t first_layer, const KernelTable& kernels)
    : hidden_size_(model.architecture().hidden_size),
      name_(name_of(model, first_layer, kernels)),
      cpu_(model, kernels, first_layer),
      gpu_(model, first_layer),
      stream_(kBlockTokens * hidden_size_) {}

size_t LayerSplit::cache_bytes(const SequencePlan& plan) const {
    return cpu_.cache_bytes(plan) + gpu_.cache_bytes(plan);
}

size_t LayerSplit::scratch_bytes(const SequencePlan& plan) const {
    return cpu_.scratch_bytes(plan) + gpu_.scratch_bytes(plan);
}

std::unique_ptr<Sequence> LayerSplit::open(const SequencePlan& plan) {
    return std::make_unique<SplitSequence>(cpu_.open(plan), gpu_.open(plan));
}

void LayerSplit::evaluate(const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    awqe::Row rows[kBlockTokens];
    const auto sequence = [&](size_t i) -> const SplitSequence& {
        return static_cast<const SplitSequence&>(*block.rows[i].sequence);
    };
    for (size_t i = 0; i < block.count; ++i) {
        rows[i] = block.rows[i];
        rows[i].sequence = sequence(i).cpu.get();
        rows[i].logits = nullptr;
        rows[i].keeps_logits = false;
        rows[i].hidden = stream_.data() + i * hidden_size_;
    }
    cpu_.evaluate({rows, block.count, block.count, 0});
    for (size_t i = 0; i < block.count; ++i) {
        rows[i] = block.rows[i];
        rows[i].sequence = sequence(i).gpu.get();
        rows[i].embedding = stream_.data() + i * hidden_size_;
    }
    gpu_.evaluate({rows, block.count, block.wanted, block.heads});
}

GpuShare gpu_share(const Model& model, const SequencePlan& plan) {
    const size_t layers = model.layers().size();
    const std::shared_ptr<Device> device = Device::shared();
    if (model.cross() != nullptr) {
        fail(AWQE_UNSUPPORTED,
             "the GPU has no layers that look at pictures so far; use the CPU for this model");
    }
    size_t room;
    {
        const Device::Use use(*device);
        room = device->free_bytes();
    }
    const bool chosen = plan.gpu_layers == AWQE_GPU_LAYERS_AUTO;
    // The first layers may belong together.
    const size_t most = layers - std::min(layers, taps_of(model));
    const size_t asked = plan.gpu_layers == 0 ? layers : std::min<size_t>(plan.gpu_layers, layers);
    // What the driver takes for recorded steps, and others who use the GPU.
    const size_t left = chosen ? room / 16 : 0;
    for (size_t count = asked;; --count) {
        if (count < layers && count > most) {
            if (chosen && most > 0) continue;
            fail(AWQE_UNSUPPORTED,
                 "the first layers of this model take up a picture again and stay together: the "
                 "GPU can have all layers, or at most the last %zu",
                 most);
        }
        const GpuNeed need = gpu_need(model, plan, layers - count, device->facts());
        if (need.total() + left <= room) return {count, need, room};
        if (!chosen || count == 1) return {0, need, room};
    }
}

size_t layers_on_gpu(const Model& model, const SequencePlan& plan) {
    const GpuShare share = gpu_share(model, plan);
    if (share.layers > 0) return share.layers;
    const size_t layers = model.layers().size();
    const size_t asked = plan.gpu_layers == AWQE_GPU_LAYERS_AUTO ? 1
                         : plan.gpu_layers == 0 ? layers
                                                : std::min<size_t>(plan.gpu_layers, layers);
    const std::string part =
        asked == layers ? "the model"
                        : std::to_string(asked) + " of " + std::to_string(layers) + " layers";
    fail(AWQE_OUT_OF_MEMORY,
         "%s would take %.2f GB (weights %.2f, context %.2f, work %.2f) and the GPU %s has "
         "%.2f GB free: say --gpu-layers auto, or --device cpu",
         part.c_str(), static_cast<double>(share.need.total()) / 1e9,
         static_cast<double>(share.need.weights) / 1e9, static_cast<double>(share.need.cache) / 1e9,
         static_cast<double>(share.need.work) / 1e9, Device::shared()->facts().name.c_str(),
         static_cast<double>(share.free_bytes) / 1e9);
}

}  // namespace awqe::cuda
