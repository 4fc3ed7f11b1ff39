// Finding and making backends; see open_model.h.
#include "native/runtime/open_model.h"

#include "native/failure/failure.h"
#include "native/runtime/cpu_backend.h"
#include "native/runtime/gpu_backend.h"

namespace awqe {

OpenModel::~OpenModel() {
    for (Link* link = first_.load(); link != nullptr;) {
        const std::unique_ptr<Link> last(link);
        link = link->next;
    }
}

Backend& OpenModel::backend(uint32_t device, const char* kernels, const SequencePlan& plan) const {
    const bool table_asked = kernels != nullptr && *kernels != '\0';
    if (device == AWQE_DEVICE_CUDA) return gpu_backend(kernels, plan);
    if (device == AWQE_DEVICE_AUTO && !table_asked) {
        try {
            return gpu_backend(kernels, plan);
        } catch (const Failure& failure) {
            const bool absent = failure.status() == AWQE_UNSUPPORTED;
            if (!absent && failure.status() != AWQE_OUT_OF_MEMORY) throw;
        }
    }
    return cpu_backend(kernels);
}

Backend& OpenModel::gpu_backend(const char* kernels, const SequencePlan& plan) const {
    const bool whole = plan.gpu_layers == 0 || (plan.gpu_layers != AWQE_GPU_LAYERS_AUTO &&
                                                plan.gpu_layers >= model_.architecture().layers);
    const KernelTable& table = *table_called(kernels);
    std::string key = "cuda";
    if (!whole) key.append(" ").append(std::to_string(plan.gpu_layers)).append(table.name);
    return found_or_made(key, [&] { return make_gpu_backend(model_, plan, table); });
}

CpuBackend& OpenModel::cpu_backend(const char* kernels) const {
    const KernelTable& table = *table_called(kernels);
    return static_cast<CpuBackend&>(
        found_or_made(table.name, [&] { return std::make_unique<CpuBackend>(model_, table); }));
}

template <class Make>
Backend& OpenModel::found_or_made(const std::string& key, const Make& make) const {
    std::unique_ptr<Link> made;
    Link* first = first_.load(std::memory_order_acquire);
    for (;;) {
        for (const Link* link = first; link != nullptr; link = link->next) {
            if (link->key == key) return *link->backend;
        }
        if (made == nullptr) {
            made = std::make_unique<Link>();
            made->key = key;
            made->backend = make();
        }
        made->next = first;
        if (first_.compare_exchange_weak(first, made.get(), std::memory_order_acq_rel)) {
            return *made.release()->backend;
        }
    }
}

}  // namespace awqe
