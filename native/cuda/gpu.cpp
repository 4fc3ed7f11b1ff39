// The GPU as the runtime meets it; see runtime/gpu_backend.h.
#include <cstring>

#include "native/cuda/cuda_backend.h"
#include "native/cuda/device.h"
#include "native/runtime/gpu_backend.h"

namespace awqe {

std::unique_ptr<Backend> make_gpu_backend(const Model& model) {
    return std::make_unique<cuda::CudaBackend>(model);
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
}

}  // namespace awqe
