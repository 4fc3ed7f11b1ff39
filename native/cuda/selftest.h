// The self-test of the GPU's kernels: each of them alone, on small shapes, against the scalar
// reference by ==; attention on tensor cores within the bound that native/ARITHMETIC.md states.
// Owns the list of kernels of the module that was loaded; inputs and comparisons stand in
// selftest_*.cpp, one file per kind of kernel.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "native/cuda/device.h"
#include "native/runtime/gpu_backend.h"

namespace awqe::cuda {

struct Trial;

// A kernel by its name in kernels/module.cu, and what runs its cases. The context is current.
struct KernelCheck {
    std::string kernel;
    std::function<void(Trial&)> run;
};

// Those of one kind that the device's module has, behind what `checks` holds.
void add_row_checks(std::vector<KernelCheck>& checks);
void add_product_checks(const DeviceFacts& facts, std::vector<KernelCheck>& checks);
void add_attention_checks(std::vector<KernelCheck>& checks);

class KernelSelftest : public GpuSelftest {
  public:
    explicit KernelSelftest(std::shared_ptr<const Device> device);
    ~KernelSelftest() override;

    bool next(SelftestResult* result) override;

  private:
    const std::shared_ptr<const Device> device_;
    std::vector<KernelCheck> checks_;
    std::unique_ptr<Trial> trial_;
    size_t next_ = 0;
};

}  // namespace awqe::cuda
