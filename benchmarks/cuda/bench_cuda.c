/* Decoding and reading prompts on the GPU, through the public header:  bench_cuda MODEL ...
 *
 * Prints tokens per second of 1, 2, 4 and 8 sequences that decode together at context 512, and of
 * prompts of 512 and 2048 tokens, with exact attention and on tensor cores: medians of some
 * repetitions after two untimed ones. Decoding is that of given tokens, and greedy: each token is
 * drawn from the logits before it. */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "awq_edge.h"

enum { kMost = 8, kPrompt = 2048, kContext = 512, kSteps = 64, kRepetitions = 5 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void* a, const void* b) {
    const double x = *(const double*)a, y = *(const double*)b;
    return x < y ? -1 : x > y;
}

static void need(awqe_status status, const awqe_error* error) {
    if (status == AWQE_OK) return;
    fprintf(stderr, "%s\n", error->message);
    exit(1);
}

static void measure_prompts(const char* path, awqe_session* session, const uint32_t* tokens,
                            size_t context, const char* kind) {
    awqe_error error;
    const size_t prompts[] = {512, 2048};
    for (size_t p = 0; p < 2; ++p) {
        if (prompts[p] > context) continue;
        double seconds[kRepetitions];
        for (int i = -2; i < kRepetitions; ++i) {
            need(awqe_session_truncate(session, 0, &error), &error);
            const double start = now();
            need(awqe_session_evaluate(session, tokens, prompts[p], AWQE_LOGITS_LAST, NULL, NULL,
                                       NULL, &error),
                 &error);
            if (i >= 0) seconds[i] = now() - start;
        }
        qsort(seconds, kRepetitions, sizeof(*seconds), by_size);
        printf("%s: prompt of %zu%s: %.0f tokens/s\n", path, prompts[p], kind,
               (double)prompts[p] / seconds[kRepetitions / 2]);
    }
}

/* One token after the other of a text at kContext: given ones, or what is drawn greedily, or drawn
 * by a sampler that needs all logits. */
static void measure_texts(const char* path, awqe_session* session, const uint32_t* tokens) {
    awqe_error error;
    const char* const kinds[] = {"greedy", "drawn from 40 likeliest"};
    for (uint32_t kind = 0; kind < 2; ++kind) {
        awqe_sampling sampling = {0};
        awqe_sampler* sampler;
        sampling.struct_size = sizeof(sampling);
        sampling.temperature = kind == 0 ? 0.0f : 0.8f;
        sampling.top_k = kind == 0 ? 0 : 40;
        sampling.top_p = 1;
        sampling.repetition_penalty = 1;
        need(awqe_sampler_open(&sampling, &sampler, &error), &error);
        double seconds[kRepetitions];
        for (int r = -2; r < kRepetitions; ++r) {
            need(awqe_session_truncate(session, kContext - 1, &error), &error);
            need(awqe_session_evaluate(session, tokens, 1, AWQE_LOGITS_LAST, NULL, NULL, NULL,
                                       &error),
                 &error);
            const double start = now();
            for (int step = 0; step < kSteps; ++step) {
                uint32_t token;
                need(awqe_session_sample(session, sampler, &token, &error), &error);
                need(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_LAST, NULL, NULL, NULL,
                                           &error),
                     &error);
            }
            if (r >= 0) seconds[r] = now() - start;
        }
        qsort(seconds, kRepetitions, sizeof(*seconds), by_size);
        const double median = seconds[kRepetitions / 2];
        printf("%s: %s at %d: %.1f tokens/s (%.0f us a token)\n", path, kinds[kind], kContext,
               kSteps / median, 1e6 * median / kSteps);
        awqe_sampler_close(sampler);
    }
}

static void measure(const char* path) {
    awqe_error error;
    awqe_model* model;
    need(awqe_model_open(path, &model, &error), &error);
    awqe_model_info info = {0};
    info.struct_size = sizeof(info);
    need(awqe_model_info_get(model, &info, &error), &error);
    awqe_session_options options = {0};
    options.struct_size = sizeof(options);
    options.device = AWQE_DEVICE_CUDA;
    options.context_length = info.context_length < kPrompt + 8 ? info.context_length : kPrompt + 8;
    awqe_session* sessions[kMost];
    for (int i = 0; i < kMost; ++i) {
        need(awqe_session_open(model, &options, &sessions[i], &error), &error);
    }
    uint32_t* tokens = malloc(kPrompt * sizeof(*tokens));
    for (uint32_t i = 0; i < kPrompt; ++i) tokens[i] = i * 7 % info.vocabulary_size;
    const char* const kinds[] = {"", ", tensor"};
    for (uint32_t kind = AWQE_ATTENTION_EXACT; kind <= AWQE_ATTENTION_TENSOR; ++kind) {
        awqe_session* session;
        options.attention = kind;
        need(awqe_session_open(model, &options, &session, &error), &error);
        measure_prompts(path, session, tokens, options.context_length, kinds[kind]);
        awqe_session_close(session);
    }
    double seconds[kRepetitions];
    for (int i = 0; i < kMost && options.context_length > kContext + kSteps; ++i) {
        need(awqe_session_truncate(sessions[i], 0, &error), &error);
        need(awqe_session_evaluate(sessions[i], tokens, kContext, AWQE_LOGITS_LAST, NULL, NULL,
                                   NULL, &error),
             &error);
    }
    for (size_t m = 1; m <= kMost && options.context_length > kContext + kSteps; m *= 2) {
        awqe_batch_input inputs[kMost];
        memset(inputs, 0, sizeof(inputs));
        for (size_t i = 0; i < m; ++i) {
            inputs[i].struct_size = sizeof(inputs[i]);
            inputs[i].which = AWQE_LOGITS_LAST;
            inputs[i].session = sessions[i];
            inputs[i].tokens = tokens + i;
            inputs[i].count = 1;
        }
        for (int r = -2; r < kRepetitions; ++r) {
            for (size_t i = 0; i < m; ++i) {
                need(awqe_session_truncate(sessions[i], kContext, &error), &error);
            }
            const double start = now();
            for (int step = 0; step < kSteps; ++step) {
                need(awqe_batch_evaluate(inputs, m, NULL, NULL, &error), &error);
            }
            if (r >= 0) seconds[r] = now() - start;
        }
        qsort(seconds, kRepetitions, sizeof(*seconds), by_size);
        const double median = seconds[kRepetitions / 2];
        printf("%s: %zu decoding at %d: %.1f tokens/s (%.0f us a step)\n", path, m, kContext,
               (double)(m * kSteps) / median, 1e6 * median / kSteps);
    }
    if (options.context_length > kContext + kSteps) measure_texts(path, sessions[0], tokens);
    free(tokens);
    for (int i = 0; i < kMost; ++i) awqe_session_close(sessions[i]);
    awqe_model_close(model);
}

int main(int argc, char** argv) {
    awqe_gpu gpu = {0};
    awqe_error error;
    gpu.struct_size = sizeof(gpu);
    need(awqe_gpu_get(&gpu, &error), &error);
    printf("%s, compute capability %u.%u, %u multiprocessors\n", gpu.name, gpu.capability / 10,
           gpu.capability % 10, gpu.multiprocessors);
    for (int i = 1; i < argc; ++i) measure(argv[i]);
    return 0;
}
