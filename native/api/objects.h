// What stands behind the opaque types of awq_edge.h.
#pragma once

#include <atomic>
#include <memory>

#include "awq_edge.h"
#include "native/api/boundary.h"
#include "native/runtime/open_model.h"
#include "native/runtime/sampler.h"
#include "native/runtime/session.h"

struct awqe_model {
    std::shared_ptr<const awqe::OpenModel> shared;
};
struct awqe_session {
    awqe::Session session;
    mutable std::atomic<bool> in_use = false;
};
struct awqe_sampler {
    awqe::Sampler sampler;
};

namespace awqe {

// The second of two calls that meet in a session is refused. A host language needs no lock of its
// own, which an interrupt could leave locked.
inline void acquire(const awqe_session& session) {
    if (session.in_use.exchange(true, std::memory_order_acquire)) {
        fail(AWQE_INVALID_ARGUMENT,
             "this session is in use by another thread, or by the call whose callback asks: give "
             "each its own");
    }
}

inline void release(const awqe_session& session) {
    session.in_use.store(false, std::memory_order_release);
}

// A session for the length of one call.
template <class CSession>  // const or not
class Used {
  public:
    explicit Used(CSession* session) : session_(required(session, "session")) { acquire(session_); }
    ~Used() { release(session_); }
    Used(const Used&) = delete;
    Used& operator=(const Used&) = delete;
    auto* operator->() const { return &session_.session; }

  private:
    CSession& session_;
};

}  // namespace awqe
