// See steps.h. A call that evaluates checks all inputs, keeps their sessions in use, and goes on
// block by block.
#include "native/api/steps.h"

#include <cstdlib>

#include "awq_edge.h"
#include "native/api/boundary.h"
#include "native/api/objects.h"
#include "native/kernels/selftest.h"
#include "native/runtime/batch.h"
#include "native/runtime/cpus.h"
#include "native/runtime/gpu_backend.h"
#include "native/runtime/vision_encoding.h"

struct awqe_encoding_run {
    awqe::VisionEncoding encoding;
};

// One of the two.
struct awqe_selftest_run {
    std::unique_ptr<awqe::Selftest> of_cpu;
    std::unique_ptr<awqe::GpuSelftest> of_gpu;
};

namespace awqe {
namespace {

Reading reading(const awqe_batch_input& input) {
    return {input.tokens, input.embeddings, input.count, input.columns,
            input.which,  input.logits,     input.hidden};
}

void need_sound(const awqe_batch_input& input, const awqe_batch_input& first) {
    if (input.tokens == nullptr && input.embeddings == nullptr) {
        fail(AWQE_INVALID_ARGUMENT, "tokens is NULL, and so is embeddings");
    }
    if (input.tokens != nullptr && input.embeddings != nullptr) {
        fail(AWQE_INVALID_ARGUMENT, "there are tokens and embeddings: one of them must be NULL");
    }
    if (&input.session->session.backend() != &first.session->session.backend()) {
        fail(AWQE_INVALID_ARGUMENT,
             "its session has another model, or other kernels, than that of the first input");
    }
    input.session->session.check(reading(input));
}

// Calls body(inputs[i]) for each; what it refuses is named by its index where there are several.
template <class Body>
void for_each(const awqe_evaluation& e, const Body& body) {
    for (size_t i = 0; i < e.input_count; ++i) {
        try {
            body(e.inputs[i]);
        } catch (const Failure& failure) {
            if (e.input_count == 1) throw;
            fail(failure.status(), "inputs[%zu]: %s", i, failure.what());
        }
    }
}

}  // namespace
}  // namespace awqe

awqe_status awqe_evaluation_begin(awqe_evaluation* e, awqe_error* error) {
    return awqe::guard(error, [&] {
        awqe::required(e->inputs, "inputs");
        if (e->input_count == 0) awqe::fail(AWQE_INVALID_ARGUMENT, "there are no inputs");
        awqe::for_each(*e, [&](const awqe_batch_input& input) {
            awqe::sized(&input, "input");
            awqe::acquire(awqe::required(input.session, "session"));
            ++e->in_use;
        });
        awqe::for_each(*e, [&](const awqe_batch_input& input) {
            awqe::need_sound(input, e->inputs[0]);
            e->total += input.count;
        });
        awqe::Session* next = nullptr;
        for (size_t i = e->input_count; i-- > 0;) {
            awqe::Session& session = e->inputs[i].session->session;
            session.begin(awqe::reading(e->inputs[i]), next);
            next = &session;
        }
    });
}

awqe_status awqe_evaluation_step(awqe_evaluation* e, awqe_error* error) {
    return awqe::guard(error,
                       [&] { e->done += awqe::evaluate_block(&e->inputs[0].session->session); });
}

awqe_status awqe_evaluation_cancel(const awqe_evaluation* e, awqe_error* error) {
    return awqe::guard(error, [&] {
        awqe::fail(AWQE_CANCELLED, "cancelled after %zu of %zu tokens", e->done, e->total);
    });
}

void awqe_evaluation_end(awqe_evaluation* e) {
    for (; e->in_use > 0; --e->in_use) awqe::release(*e->inputs[e->in_use - 1].session);
}

awqe_status awqe_encoding_begin(awqe_encoding_run** run, const awqe_model* model,
                                const uint8_t* pixels, size_t count, uint32_t height,
                                uint32_t width, uint32_t threads, float* embeddings, size_t* total,
                                awqe_error* error) {
    return awqe::guard(error, [&] {
        const auto& shared = awqe::required(model, "model").shared;
        const awqe::VisionShape shape =
            awqe::need_shape(awqe::need_vision(shared->model()), height, width);
        awqe::required(pixels, "pixels");
        awqe::required(embeddings, "embeddings");
        if (count == 0) awqe::fail(AWQE_INVALID_ARGUMENT, "there are no pictures to encode");
        *run = new awqe_encoding_run{awqe::VisionEncoding(shared, std::getenv("AWQ_EDGE_KERNELS"),
                                                          awqe::thread_count(threads, "threads"),
                                                          pixels, count, shape, embeddings)};
        *total = (*run)->encoding.total();
    });
}

awqe_status awqe_encoding_step(awqe_encoding_run* run, size_t* done, awqe_error* error) {
    return awqe::guard(error, [&] {
        run->encoding.step();
        *done = run->encoding.done();
    });
}

awqe_status awqe_encoding_cancel(size_t done, size_t total, awqe_error* error) {
    return awqe::guard(error, [&] {
        awqe::fail(AWQE_CANCELLED, "cancelled after %zu of %zu parts", done, total);
    });
}

void awqe_encoding_end(awqe_encoding_run* run) { delete run; }

awqe_status awqe_selftest_begin(awqe_selftest_run** run, bool gpu, bool report, awqe_error* error) {
    return awqe::guard(error, [&] {
        if (!report) awqe::fail(AWQE_INVALID_ARGUMENT, "report is NULL");
        auto begun = std::make_unique<awqe_selftest_run>();
        if (gpu) {
            begun->of_gpu = awqe::make_gpu_selftest();
        } else {
            begun->of_cpu = std::make_unique<awqe::Selftest>();
        }
        *run = begun.release();
    });
}

awqe_status awqe_selftest_step(awqe_selftest_run* run, awqe_selftest_result* result, bool* done,
                               awqe_error* error) {
    return awqe::guard(error, [&] {
        awqe::SelftestResult next = {};
        *done = !(run->of_gpu ? run->of_gpu->next(&next) : run->of_cpu->next(&next));
        *result = {sizeof(*result), next.cases, next.differing, next.kernels, next.operation};
    });
}

awqe_status awqe_selftest_cancel(awqe_error* error) {
    return awqe::guard(error, [&] { awqe::fail(AWQE_CANCELLED, "the self-test was stopped"); });
}

void awqe_selftest_end(awqe_selftest_run* run) { delete run; }
