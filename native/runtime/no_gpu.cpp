// A library without kernels for GPUs; see gpu_backend.h. native/cuda/gpu.cpp is the other one.
#include "native/failure/failure.h"
#include "native/runtime/gpu_backend.h"

namespace awqe {
namespace {

[[noreturn]] void refuse() {
    fail(AWQE_UNSUPPORTED,
         "this library was built without kernels for GPUs: install a wheel that has them, or use "
         "the CPU");
}

}  // namespace

std::unique_ptr<Backend> make_gpu_backend(const Model&, const SequencePlan&, const KernelTable&) {
    refuse();
}

void describe_gpu(awqe_gpu*) { refuse(); }

void describe_gpu_memory(const Model&, const SequencePlan&, awqe_gpu_memory*) { refuse(); }

std::unique_ptr<GpuSelftest> make_gpu_selftest() { refuse(); }

double gpu_read_bandwidth() { refuse(); }

}  // namespace awqe
