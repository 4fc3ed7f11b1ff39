/* Generates token ids from a model file, in plain C99. Text needs a tokenizer, which the host
 * language brings along; here the prompt is a list of ids:
 *
 *     cc -std=c99 -I native/include examples/03_embed_in_c.c -L BUILD -lawq_edge -o embed
 *     ./embed model.awq.gguf 20 1 450 4996
 *
 * prints 20 ids that follow 1, 450, 4996. */
#include <stdio.h>
#include <stdlib.h>

#include "awq_edge.h"

static awqe_error error;

static void must(awqe_status status) {
    if (status == AWQE_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)status, error.message);
    exit(1);
}

int main(int argc, char** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL COUNT ID [ID ...]\n", argv[0]);
        return 2;
    }
    const size_t count = (size_t)(argc - 3);
    uint32_t* prompt = malloc(count * sizeof(*prompt));
    if (prompt == NULL) return 1;
    for (size_t i = 0; i < count; ++i) prompt[i] = (uint32_t)strtoul(argv[i + 3], NULL, 10);

    awqe_model* model;
    awqe_session* session;
    awqe_sampler* sampler;
    awqe_sampling sampling = {0}; /* temperature 0: greedy */
    sampling.struct_size = sizeof(sampling);
    sampling.top_p = 1;
    sampling.repetition_penalty = 1;
    must(awqe_model_open(argv[1], &model, &error));
    must(awqe_session_open(model, NULL, &session, &error));
    must(awqe_sampler_open(&sampling, &sampler, &error));

    must(awqe_session_evaluate(session, prompt, count, AWQE_LOGITS_LAST, NULL, NULL, NULL, &error));
    for (long left = strtol(argv[2], NULL, 10); left > 0; --left) {
        uint32_t token;
        must(awqe_session_sample(session, sampler, &token, &error));
        printf("%u\n", (unsigned)token);
        must(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_LAST, NULL, NULL, NULL, &error));
    }

    awqe_sampler_close(sampler);
    awqe_session_close(session);
    awqe_model_close(model);
    free(prompt);
    return 0;
}
