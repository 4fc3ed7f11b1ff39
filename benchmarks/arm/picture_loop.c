/* Encodes a square picture of a model's a given number of times with one thread: what count.py
 * counts the instructions of.
 *
 *     picture_loop MODEL SIDE TIMES */
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
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL SIDE TIMES\n", argv[0]);
        return 2;
    }
    awqe_model* model;
    awqe_vision_info info = {0};
    info.struct_size = sizeof(info);
    const uint32_t side = (uint32_t)strtoul(argv[2], NULL, 10);
    must(awqe_model_open(argv[1], &model, &error));
    must(awqe_vision_info_get(model, &info, &error));
    const size_t line = info.step != 0 ? side / info.step : 0;
    const size_t rows = info.step != 0 ? line * line : info.tokens;
    uint8_t* const pixels = malloc((size_t)side * side * 3);
    float* const embeddings = malloc(rows * info.embedding_size * sizeof(float));
    if (pixels == NULL || embeddings == NULL) return 1;
    for (size_t i = 0; i < (size_t)side * side * 3; ++i) pixels[i] = (uint8_t)(i * i % 251);
    for (long left = strtol(argv[3], NULL, 10); left > 0; --left) {
        must(awqe_vision_encode(model, pixels, 1, side, side, 1, embeddings, NULL, NULL, &error));
    }
    free(embeddings);
    free(pixels);
    awqe_model_close(model);
    return 0;
}
