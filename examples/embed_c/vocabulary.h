/* Text of a token, read from the tokenizer that lies in the model file. Enough to print what a
 * model generates; turning a prompt into tokens is left to a tokenizer library. */
#ifndef VOCABULARY_H
#define VOCABULARY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vocabulary vocabulary;

/* Reads the "vocab" of a tokenizer.json [length bytes]. NULL if there is none. Free it with
 * vocabulary_close(). */
vocabulary* vocabulary_open(const char* json, size_t length);
void vocabulary_close(vocabulary* v);

/* UTF-8 bytes of a token, NUL-terminated; a token may end inside a character. Empty for special
 * tokens and for ids that do not exist. Lives as long as the vocabulary. */
const char* vocabulary_text(const vocabulary* v, uint32_t token);

#ifdef __cplusplus
}
#endif

#endif
