// The C API's objects as tests hold them: each closes itself, and a call that fails fails the test.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/model_bytes.h"

namespace awqe::test {

struct Close {
    void operator()(awqe_model* model) const { awqe_model_close(model); }
    void operator()(awqe_session* session) const { awqe_session_close(session); }
    void operator()(awqe_sampler* sampler) const { awqe_sampler_close(sampler); }
};
using OwnedModel = std::unique_ptr<awqe_model, Close>;
using OwnedSession = std::unique_ptr<awqe_session, Close>;
using OwnedSampler = std::unique_ptr<awqe_sampler, Close>;

inline void need(awqe_status status, const awqe_error& error) {
    if (status != AWQE_OK) fail(__FILE__, __LINE__, error.message);
}

inline OwnedModel open_model(const std::string& path) {
    awqe_model* model = nullptr;
    awqe_error error = {};
    need(awqe_model_open(path.c_str(), &model, &error), error);
    return OwnedModel(model);
}

// A model file without a place on any disk.
inline OwnedModel open_bytes(const Bytes& bytes) {
    const int file = memfd_create("made.awq.gguf", MFD_CLOEXEC);
    CHECK(file >= 0 && write(file, bytes.data(), bytes.size()) == ssize_t(bytes.size()));
    OwnedModel model = open_model("/proc/self/fd/" + std::to_string(file));
    close(file);
    return model;
}

}  // namespace awqe::test
