/* Decodes a given number of tokens of a GGUF model with llama.cpp and one thread: what count.py
 * counts the instructions of, beside ../token_loop.c. The tokens are fixed, so that no sampling is
 * counted.
 *
 *     llama_cpp_loop MODEL TOKENS */
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char* text, void* user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL TOKENS\n", argv[0]);
        return 2;
    }
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) return 1;
    struct llama_context_params options = llama_context_default_params();
    options.n_ctx = 128;
    options.n_threads = options.n_threads_batch = 1;
    struct llama_context* context = llama_init_from_model(model, options);
    if (context == NULL) return 1;
    for (long left = strtol(argv[2], NULL, 10); left > 0; --left) {
        llama_token token = 7;
        if (llama_decode(context, llama_batch_get_one(&token, 1)) != 0) {
            fprintf(stderr, "llama_decode failed\n");
            return 1;
        }
        llama_synchronize(context);
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}
