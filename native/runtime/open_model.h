// A model and what computes with it: shared by everybody who has the model open, its sessions
// included, and gone with the last of them. Owns both; chooses which backend a session gets.
#pragma once

#include <atomic>
#include <memory>

#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe {

class OpenModel {
  public:
    // Throws Failure.
    explicit OpenModel(const char* path) : model_(path) {}
    ~OpenModel();
    OpenModel(const OpenModel&) = delete;
    OpenModel& operator=(const OpenModel&) = delete;

    const Model& model() const { return model_; }

    // The backend with the kernel table called `kernels`, or for NULL or "" the best one: always
    // the same object, so that all sessions share its threads and memory. Throws Failure. Safe from
    // any thread.
    Backend& backend(const char* kernels) const;

  private:
    // A list that only grows, at its front: no lock, which a fork could leave locked.
    struct Link {
        std::unique_ptr<Backend> backend;
        Link* next;
    };

    const Model model_;
    mutable std::atomic<Link*> first_{nullptr};
};

}  // namespace awqe
