/* Decodes a given number of tokens of a model with one thread: what count.py counts the
 * instructions of. The tokens are fixed, so that no sampling is counted.
 *
 *     token_loop MODEL TOKENS */
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
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL TOKENS\n", argv[0]);
        return 2;
    }
    awqe_model* model;
    awqe_session* session;
    awqe_session_options options = {0};
    options.struct_size = sizeof(options);
    options.threads = 1;
    options.prefill_threads = 1;
    options.context_length = 128;
    must(awqe_model_open(argv[1], &model, &error));
    must(awqe_session_open(model, &options, &session, &error));
    for (long left = strtol(argv[2], NULL, 10); left > 0; --left) {
        const uint32_t token = 7;
        must(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_LAST, NULL, NULL, NULL, &error));
    }
    awqe_session_close(session);
    awqe_model_close(model);
    return 0;
}
