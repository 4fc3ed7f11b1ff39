// Finding and making backends; see open_model.h.
#include "native/runtime/open_model.h"

#include <string_view>

#include "native/runtime/cpu_backend.h"

namespace awqe {

OpenModel::~OpenModel() {
    for (Link* link = first_.load(); link != nullptr;) {
        const std::unique_ptr<Link> last(link);
        link = link->next;
    }
}

Backend& OpenModel::backend(const char* kernels) const {
    const KernelTable& table = *table_called(kernels);
    std::unique_ptr<Link> made;
    Link* first = first_.load(std::memory_order_acquire);
    for (;;) {
        for (const Link* link = first; link != nullptr; link = link->next) {
            if (std::string_view(link->backend->name()) == table.name) return *link->backend;
        }
        if (made == nullptr) {
            made = std::make_unique<Link>();
            made->backend = std::make_unique<CpuBackend>(model_, table);
        }
        made->next = first;
        if (first_.compare_exchange_weak(first, made.get(), std::memory_order_acq_rel)) {
            return *made.release()->backend;
        }
    }
}

}  // namespace awqe
