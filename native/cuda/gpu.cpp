// The GPU as the runtime meets it; see runtime/gpu_backend.h.
#include <cstring>

#include "native/cuda/bandwidth.h"
#include "native/cuda/cuda_backend.h"
#include "native/cuda/device.h"
#include "native/cuda/in_place.h"
#include "native/cuda/layer_split.h"
#include "native/cuda/selftest.h"
#include "native/runtime/gpu_backend.h"

namespace awqe {

std::unique_ptr<Backend> make_gpu_backend(const Model& model, const SequencePlan& plan,
                                          const KernelTable& kernels) {
    const size_t first = model.layers().size() - cuda::layers_on_gpu(model, plan);
    if (first == 0) return std::make_unique<cuda::CudaBackend>(model, 0);
    return std::make_unique<cuda::LayerSplit>(model, first, kernels);
}

void describe_gpu(awqe_gpu* gpu) {
    const std::shared_ptr<cuda::Device> device = cuda::Device::shared();
    const cuda::DeviceFacts& facts = device->facts();
    std::strncpy(gpu->name, facts.name.c_str(), sizeof(gpu->name) - 1);
    gpu->capability = static_cast<uint32_t>(facts.capability);
    gpu->driver_version = static_cast<uint32_t>(device->driver().version);
    gpu->multiprocessors = static_cast<uint32_t>(facts.multiprocessors);
    gpu->integrated = facts.integrated;
    gpu->memory_bytes = facts.memory_bytes;
    const cuda::Device::Use use(*device);
    gpu->free_bytes = device->free_bytes();
    if (!facts.integrated) return;
    std::string reason;
    gpu->in_place = cuda::reads_in_place(device, &reason);
    std::strncpy(gpu->copy_reason, reason.c_str(), sizeof(gpu->copy_reason) - 1);
}

void describe_gpu_memory(const Model& model, const SequencePlan& plan, awqe_gpu_memory* memory) {
    const cuda::GpuShare share = cuda::gpu_share(model, plan);
    memory->layers = static_cast<uint32_t>(share.layers);
    memory->weight_bytes = share.need.weights;
    memory->cache_bytes = share.need.cache;
    memory->scratch_bytes = share.need.work;
    memory->free_bytes = share.free_bytes;
}

std::unique_ptr<GpuSelftest> make_gpu_selftest() {
    return std::make_unique<cuda::KernelSelftest>(cuda::Device::shared());
}

double gpu_read_bandwidth() { return cuda::read_bandwidth(cuda::Device::shared()); }

}  // namespace awqe
