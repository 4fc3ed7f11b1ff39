// The backend of this machine's CPUs, with the kernels of one table. Owns the threads, the working
// memory of those who compute at the same time, and how many threads a block is worth; what is
// computed is forward()'s.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/backend.h"
#include "native/runtime/forward.h"
#include "native/runtime/model.h"
#include "native/runtime/per_process.h"
#include "native/runtime/team_size.h"
#include "native/runtime/thread_pool.h"

namespace awqe {

// The table called `name`, or for NULL or "" the best one. Throws Failure with AWQE_UNSUPPORTED.
const KernelTable* table_called(const char* name);

class CpuBackend : public Backend {
  public:
    // `model` outlives it. `layers`: where others compute the rest, those in front of it, as
    // forward() says.
    CpuBackend(const Model& model, const KernelTable& kernels, size_t layers);
    CpuBackend(const Model& model, const KernelTable& kernels)
        : CpuBackend(model, kernels, model.layers().size()) {}
    ~CpuBackend() override;

    const char* name() const override { return kernels_.name; }
    bool sees_ahead() const override { return true; }
    size_t block_rows() const override { return kBlockTokens; }
    size_t cache_bytes(const SequencePlan& plan) const override;
    size_t scratch_bytes(const SequencePlan& plan) const override;
    std::unique_ptr<Sequence> open(const SequencePlan& plan) override;
    void evaluate(const Block& block) override;

    // For those who compute something else with the same kernels and threads.
    const KernelTable& kernels() const { return kernels_; }
    ThreadPool& pool() { return pool_; }

  private:
    class CpuSequence;
    struct Workspace;
    struct Workspaces;
    class Borrowed;

    size_t workspace_bytes(unsigned threads) const;
    Workspaces& workspaces();
    void forget_sequence();

    const Model& model_;
    const Architecture cached_;  // with the layers that are computed here
    const KernelTable& kernels_;
    ThreadPool pool_;
    PerProcess<Workspaces> workspaces_;
    std::atomic<size_t> sequences_{0};  // open ones
};

}  // namespace awqe
