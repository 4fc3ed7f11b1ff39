// Kernels of products, norms and activations with the grids, threads and shared memory that they
// ask for, one function per kind of kernel. Owns their names and these sizes; other kernels' stand
// where they are launched. What is computed in which order is step.h's, and with what it is
// compared, selftest.h's.
#pragma once

#include <map>
#include <string>

#include "native/cuda/device.h"
#include "native/cuda/weights.h"

namespace awqe::cuda {

using awqe_cuda::Activations;
using awqe_cuda::CacheShape;
using awqe_cuda::kAttentionChunk;
using awqe_cuda::kChunk;
using awqe_cuda::Products;
using awqe_cuda::RowInput;

constexpr size_t kUnitInputs = awqe_cuda::kChunk * awqe_cuda::kUnitChunks;
constexpr size_t kFewRows = 8;  // of kernels/rows.cuh
constexpr unsigned kThreads = 256;

inline unsigned divided(size_t value, size_t by) {
    return static_cast<unsigned>((value + by - 1) / by);
}

// Rows of k inputs in groups, quantised or about to be.
Activations activations(signed char* codes, int2* side, size_t k, int group_size);

// Blocks of rows, or tiles of `each` rows, in all matrices of a product.
size_t parts_of(const Products& products, size_t each);

// Kernels by name, looked up when they are first used.
struct Kernels {
    const Device& device;
    std::map<std::string, Function> known = {};

    Function operator()(const std::string& name);
    // op_u<bits>_g<group size><suffix>
    Function operator()(const char* operation, const Matrix& w, const char* suffix = "");
};

// Whether a GPU has kernels/gemm_warpgroup.cuh for such matrices.
bool has_warpgroups(const DeviceFacts& facts, uint32_t bits, uint32_t group_size);

class Launches {
  public:
    Launches(const Device& device, Stream stream, Kernels& kernels)
        : device_(device), launch_(device, stream), kernels_(kernels) {}

    // x: float [m, k], to codes; with a norm before where it has weights.
    void quantize(const float* x, const NormWeights& norm, const Activations& out, size_t m) const;
    // Norms of whole rows [m, width], in floats; `how`: kernels/quantize.cuh's.
    void norm(float* stream, const float* branch, const NormWeights& norm, size_t m, size_t width,
              int how) const;

    // act(x) * factor, to codes; factor: float, rows factor_stride apart, or NULL.
    void activate(const float* x, const float* factor, size_t factor_stride, int activation,
                  const Activations& out, size_t m) const;

    // Whether kernels/walk.cuh multiplies matrices like this one.
    bool walks(const Matrix& w) const;
    // One row times matrices of one width: by walk.cuh, and by gemv.cuh with the ending "_store",
    // "_add" or "_gate".
    void walk(int epilogue, const Products& products, const RowInput& in) const;
    void gemv(const char* epilogue, const Products& products, const Activations& x) const;
    // Up to kFewRows rows.
    void rows(const Products& products, const Activations& x, size_t m, bool add) const;
    // Any number of rows: by gemm.cuh, and by gemm_warpgroup.cuh where it has them.
    void gemm(const Matrix& w, float* out, const Activations& x, size_t m, bool add) const;
    bool has_warpgroups(const Matrix& w) const;
    void gemm_warpgroup(const Products& products, const Activations& x, size_t m, bool add) const;

  private:
    const Device& device_;
    const Launcher launch_;
    Kernels& kernels_;
};

// A cache of so many layers: see kernels/parameters.h.
CacheShape cache_shape(size_t kv_heads, size_t head_size, size_t layers, bool int8);

// Shared memory of attention: of n query heads and a chunk; of a tile of queries, for heads of up
// to `outputs` numbers; on tensor cores.
size_t chunk_shared(size_t head_size, size_t n);
size_t prompt_shared(size_t head_size, size_t outputs);
size_t tensor_shared(size_t outputs);

}  // namespace awqe::cuda
