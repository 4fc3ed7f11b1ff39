// A model and what computes with it: shared by everybody who has the model open, its sessions
// included, and gone with the last of them. Owns both; chooses which backend a session gets.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe {

class CpuBackend;

class OpenModel {
  public:
    // Throws Failure.
    explicit OpenModel(const char* path) : model_(path) {}
    ~OpenModel();
    OpenModel(const OpenModel&) = delete;
    OpenModel& operator=(const OpenModel&) = delete;

    const Model& model() const { return model_; }

    // The backend of a device; on the CPU with the kernel table called `kernels`, or for NULL or ""
    // the best one. AWQE_DEVICE_AUTO is the GPU where there is one that holds the model and no
    // table is asked for. `plan`: of a session for which there has to be room, and how the layers
    // are divided. Always the same object for the same device and division, so that all sessions
    // share its threads and memory. Throws Failure. Safe from any thread.
    Backend& backend(uint32_t device, const char* kernels, const SequencePlan& plan) const;
    // That of the CPU, as backend() gives it.
    CpuBackend& cpu_backend(const char* kernels) const;

  private:
    // A list that only grows, at its front: no lock, which a fork could leave locked.
    struct Link {
        std::string key;  // device and division
        std::unique_ptr<Backend> backend;
        Link* next;
    };

    template <class Make>
    Backend& found_or_made(const std::string& key, const Make& make) const;
    Backend& gpu_backend(const char* kernels, const SequencePlan& plan) const;

    const Model model_;
    mutable std::atomic<Link*> first_{nullptr};
};

}  // namespace awqe
