/* What the loops of callbacks.c call: the pieces between a caller's callbacks, each under guard()
 * in steps.cpp. Hidden from everybody else. C99 and C++. */
#pragma once

#include "awq_edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One call that evaluates, and how far it is. */
typedef struct awqe_evaluation {
    const awqe_batch_input* inputs;
    size_t input_count;
    size_t in_use; /* of the first so many sessions, until awqe_evaluation_end() */
    size_t done;   /* tokens of all inputs */
    size_t total;  /* likewise */
} awqe_evaluation;

awqe_status awqe_evaluation_begin(awqe_evaluation* evaluation, awqe_error* error);
awqe_status awqe_evaluation_step(awqe_evaluation* evaluation, awqe_error* error);
awqe_status awqe_evaluation_cancel(const awqe_evaluation* evaluation, awqe_error* error);
void awqe_evaluation_end(awqe_evaluation* evaluation);

/* One call that encodes pictures. */
typedef struct awqe_encoding_run awqe_encoding_run;

awqe_status awqe_encoding_begin(awqe_encoding_run** run, const awqe_model* model,
                                const uint8_t* pixels, size_t count, uint32_t height,
                                uint32_t width, uint32_t threads, float* embeddings, size_t* total,
                                awqe_error* error);
awqe_status awqe_encoding_step(awqe_encoding_run* run, size_t* done, awqe_error* error);
awqe_status awqe_encoding_cancel(size_t done, size_t total, awqe_error* error);
void awqe_encoding_end(awqe_encoding_run* run);

typedef struct awqe_selftest_run awqe_selftest_run;

/* `report` only says whether there is one. */
awqe_status awqe_selftest_begin(awqe_selftest_run** run, bool gpu, bool report, awqe_error* error);
awqe_status awqe_selftest_step(awqe_selftest_run* run, awqe_selftest_result* result, bool* done,
                               awqe_error* error);
awqe_status awqe_selftest_cancel(awqe_error* error);
void awqe_selftest_end(awqe_selftest_run* run);

#ifdef __cplusplus
}
#endif
