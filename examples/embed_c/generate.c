/* Generates text with a model file, in plain C99, without Python:
 *
 *     generate MODEL COUNT [ID ...]
 *
 * continues the tokens ID, or begins a text of its own. README.md tells how to build it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "awq_edge.h"
#include "vocabulary.h"

static awqe_error error;

static void must(awqe_status status) {
    if (status == AWQE_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)status, error.message);
    exit(1);
}

/* The entry `key` of the file's metadata; its struct_size is 0 if there is none. */
static awqe_metadata find(const awqe_model* model, const char* key) {
    awqe_metadata entry = {0};
    const size_t count = awqe_model_metadata_count(model);
    for (size_t i = 0; i < count; ++i) {
        entry.struct_size = sizeof(entry);
        must(awqe_model_metadata_at(model, i, &entry, &error));
        if (strcmp(entry.key, key) == 0) return entry;
    }
    entry.struct_size = 0;
    return entry;
}

int main(int argc, char** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL COUNT [ID ...]\n", argv[0]);
        return 2;
    }
    awqe_model* model;
    awqe_session* session;
    awqe_sampler* sampler;
    awqe_sampling sampling = {0}; /* temperature 0: always the likeliest token */
    sampling.struct_size = sizeof(sampling);
    sampling.top_p = 1;
    sampling.repetition_penalty = 1;
    must(awqe_model_open(argv[1], &model, &error));
    must(awqe_session_open(model, NULL, &session, &error));
    must(awqe_sampler_open(&sampling, &sampler, &error));

    const awqe_metadata tokenizer = find(model, "tokenizer.huggingface.json");
    const awqe_metadata begin = find(model, "tokenizer.ggml.bos_token_id");
    const awqe_metadata end = find(model, "tokenizer.ggml.eos_token_id");
    vocabulary* words = tokenizer.struct_size != 0
                            ? vocabulary_open(tokenizer.string_value, (size_t)tokenizer.count)
                            : NULL;
    if (words == NULL) {
        fprintf(stderr, "%s holds no vocabulary\n", argv[1]);
        return 1;
    }

    uint32_t token = (uint32_t)begin.unsigned_value;
    for (int i = 3; i < argc; ++i) {
        token = (uint32_t)strtoul(argv[i], NULL, 10);
        fputs(vocabulary_text(words, token), stdout);
        if (i + 1 < argc) {
            must(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_NONE, NULL, NULL, NULL,
                                       &error));
        }
    }
    for (long left = strtol(argv[2], NULL, 10); left > 0; --left) {
        must(awqe_session_evaluate(session, &token, 1, AWQE_LOGITS_LAST, NULL, NULL, NULL, &error));
        must(awqe_session_sample(session, sampler, &token, &error));
        if (end.struct_size != 0 && token == end.unsigned_value) break;
        fputs(vocabulary_text(words, token), stdout);
        fflush(stdout);
    }
    putchar('\n');

    vocabulary_close(words);
    awqe_sampler_close(sampler);
    awqe_session_close(session);
    awqe_model_close(model);
    return 0;
}
