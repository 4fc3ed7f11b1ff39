/* The functions of awq_edge.h that call their caller back. In C, because a callback may not return:
 * Python ends a thread of a process that exits by unwinding its stack, and no C++ frame may be
 * there, which would answer with std::terminate, or with the unwinder of another C++ library. So
 * nothing of ours is on the stack then but these functions; what they have begun a handler of the
 * thread ends. Holds no logic; c_api.cpp has every other function. */
#include <pthread.h>

#include "awq_edge.h"
#include "native/api/steps.h"

static awqe_status run_evaluation(awqe_evaluation* evaluation, awqe_progress progress, void* user,
                                  awqe_error* error) {
    awqe_status status = awqe_evaluation_begin(evaluation, error);
    while (status == AWQE_OK && evaluation->done < evaluation->total) {
        if (evaluation->done > 0 && progress != NULL &&
            !progress(user, evaluation->done, evaluation->total)) {
            return awqe_evaluation_cancel(evaluation, error);
        }
        status = awqe_evaluation_step(evaluation, error);
    }
    return status;
}

static void end_evaluation(void* evaluation) { awqe_evaluation_end(evaluation); }

awqe_status awqe_batch_evaluate(const awqe_batch_input* inputs, size_t input_count,
                                awqe_progress progress, void* user, awqe_error* error) {
    awqe_evaluation evaluation = {inputs, input_count, 0, 0, 0};
    awqe_status status;
    pthread_cleanup_push(end_evaluation, &evaluation);
    status = run_evaluation(&evaluation, progress, user, error);
    pthread_cleanup_pop(1);
    return status;
}

awqe_status awqe_session_evaluate(awqe_session* session, const uint32_t* tokens, size_t count,
                                  uint32_t which, float* logits, awqe_progress progress, void* user,
                                  awqe_error* error) {
    const awqe_batch_input input = {sizeof(input), which, session, tokens, NULL,
                                    count,         0,     logits,  NULL};
    return awqe_batch_evaluate(&input, 1, progress, user, error);
}

awqe_status awqe_session_evaluate_embeddings(awqe_session* session, const float* embeddings,
                                             size_t count, uint32_t which, float* logits,
                                             awqe_progress progress, void* user,
                                             awqe_error* error) {
    const awqe_batch_input input = {sizeof(input), which, session, NULL, embeddings,
                                    count,         0,     logits,  NULL};
    return awqe_batch_evaluate(&input, 1, progress, user, error);
}

/* What a call that encodes has begun and how far it is. */
typedef struct encoding {
    awqe_encoding_run* run;
    size_t done;
    size_t total;
} encoding;

static awqe_status run_encoding(encoding* e, awqe_progress progress, void* user,
                                awqe_error* error) {
    awqe_status status = AWQE_OK;
    while (status == AWQE_OK && e->done < e->total) {
        if (e->done > 0 && progress != NULL && !progress(user, e->done, e->total)) {
            return awqe_encoding_cancel(e->done, e->total, error);
        }
        status = awqe_encoding_step(e->run, &e->done, error);
    }
    return status;
}

static void end_encoding(void* run) { awqe_encoding_end(*(awqe_encoding_run**)run); }

awqe_status awqe_vision_encode(const awqe_model* model, const uint8_t* pixels, size_t count,
                               uint32_t height, uint32_t width, uint32_t threads, float* embeddings,
                               awqe_progress progress, void* user, awqe_error* error) {
    encoding e = {NULL, 0, 0};
    awqe_status status;
    pthread_cleanup_push(end_encoding, &e.run);
    status = awqe_encoding_begin(&e.run, model, pixels, count, height, width, threads, embeddings,
                                 &e.total, error);
    if (status == AWQE_OK) status = run_encoding(&e, progress, user, error);
    pthread_cleanup_pop(1);
    return status;
}

static awqe_status run_selftest(awqe_selftest_run** run, bool gpu, awqe_selftest_report report,
                                void* user, awqe_error* error) {
    awqe_status status = awqe_selftest_begin(run, gpu, report != NULL, error);
    while (status == AWQE_OK) {
        awqe_selftest_result result;
        bool done = false;
        status = awqe_selftest_step(*run, &result, &done, error);
        if (status != AWQE_OK || done) break;
        if (!report(user, &result)) return awqe_selftest_cancel(error);
    }
    return status;
}

static void end_selftest(void* run) { awqe_selftest_end(*(awqe_selftest_run**)run); }

static awqe_status selftest_of(bool gpu, awqe_selftest_report report, void* user,
                               awqe_error* error) {
    awqe_selftest_run* run = NULL;
    awqe_status status;
    pthread_cleanup_push(end_selftest, &run);
    status = run_selftest(&run, gpu, report, user, error);
    pthread_cleanup_pop(1);
    return status;
}

awqe_status awqe_selftest(awqe_selftest_report report, void* user, awqe_error* error) {
    return selftest_of(false, report, user, error);
}

awqe_status awqe_gpu_selftest(awqe_selftest_report report, void* user, awqe_error* error) {
    return selftest_of(true, report, user, error);
}
