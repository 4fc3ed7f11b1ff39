// The C API's objects as tests hold them: each closes itself, and a call that fails fails the test.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
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

// With these kernels ("" for the best) and as many threads for prompts as for single tokens.
inline OwnedSession open_session(const OwnedModel& model, const char* kernels, uint32_t threads,
                                 awqe_kv_type kv_type) {
    setenv("AWQ_EDGE_KERNELS", kernels, 1);
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.threads = options.prefill_threads = threads;
    options.kv_type = kv_type;
    awqe_session* session = nullptr;
    awqe_error error;
    need(awqe_session_open(model.get(), &options, &session, &error), error);
    return OwnedSession(session);
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
