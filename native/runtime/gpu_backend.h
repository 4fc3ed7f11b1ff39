// Where the runtime meets a GPU: the one function that differs between a library that carries
// kernels for GPUs and one that does not.
#pragma once

#include <memory>

#include "awq_edge.h"
#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe {

// `model` outlives it. Throws Failure: AWQE_UNSUPPORTED where there is no usable GPU, or no code
// for one in this library; AWQE_OUT_OF_MEMORY where it does not hold the model.
std::unique_ptr<Backend> make_gpu_backend(const Model& model);

// What the GPU is, as awqe_gpu_get() says. Throws Failure with AWQE_UNSUPPORTED.
void describe_gpu(awqe_gpu* gpu);

}  // namespace awqe
