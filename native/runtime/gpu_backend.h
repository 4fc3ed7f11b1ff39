// Where the runtime meets a GPU: the functions that differ between a library that carries kernels
// for GPUs and one that does not.
#pragma once

#include <memory>

#include "awq_edge.h"
#include "native/kernels/kernel_table.h"
#include "native/kernels/selftest.h"
#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe {

// With as many layers on the GPU as the plan says, and room for one sequence of it; layers that are
// left are the CPU's, with these kernels. `model` outlives it. Throws Failure: AWQE_UNSUPPORTED
// where there is no usable GPU, or no code for one in this library; AWQE_OUT_OF_MEMORY, with the
// numbers, where it does not hold the layers.
std::unique_ptr<Backend> make_gpu_backend(const Model& model, const SequencePlan& plan,
                                          const KernelTable& kernels);

// What the GPU is, as awqe_gpu_get() says. Throws Failure with AWQE_UNSUPPORTED.
void describe_gpu(awqe_gpu* gpu);

// What a session of this plan would take, as awqe_session_gpu_memory() says. Throws Failure with
// AWQE_UNSUPPORTED.
void describe_gpu_memory(const Model& model, const SequencePlan& plan, awqe_gpu_memory* memory);

// A walk over the kernels of the GPU's module, as kernels/selftest.h's over those of the CPU: the
// operation is the kernel's name, which lives as long as the walk.
class GpuSelftest {
  public:
    virtual ~GpuSelftest() = default;
    // Runs the next kernel's cases. False if there is none. Throws Failure.
    virtual bool next(SelftestResult* result) = 0;
};

// Throws Failure with AWQE_UNSUPPORTED.
std::unique_ptr<GpuSelftest> make_gpu_selftest();

// As awqe_gpu_read_bandwidth() says. Throws Failure.
double gpu_read_bandwidth();

}  // namespace awqe
