/* See vocabulary.h. Understands SentencePiece vocabularies as Hugging Face writes them: U+2581 is a
 * space, <0x0A> a byte, <s> and the like are special. */
#include "vocabulary.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct vocabulary {
    size_t count;
    char** texts; /* by token id */
};

static size_t put_utf8(char* out, unsigned code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 63));
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 63));
    out[2] = (char)(0x80 | (code >> 6 & 63));
    out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* The four hexadecimal digits of an escape; 0 if the text ends before. */
static unsigned hex4(const char* p, const char* end) {
    char digits[5] = {0};
    if (end - p < 4) return 0;
    memcpy(digits, p, 4);
    return (unsigned)strtoul(digits, NULL, 16);
}

/* Copies the JSON string that begins after a quote at p into out, which has room for as many bytes
 * as the string takes in the file. Gives the place after the closing quote, or NULL. */
static const char* read_string(const char* p, const char* end, char* out) {
    while (p < end && *p != '"') {
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        if (++p >= end) return NULL;
        const char letter = *p++;
        if (letter == 'u') {
            unsigned code = hex4(p, end);
            p += 4;
            if (code >= 0xd800 && code < 0xdc00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
                code = 0x10000 + ((code - 0xd800) << 10) + (hex4(p + 2, end) - 0xdc00);
                p += 6;
            }
            out += put_utf8(out, code);
        } else {
            static const char from[] = "nrtbf";
            static const char to[] = "\n\r\t\b\f";
            const char* known = strchr(from, letter);
            *out++ = known != NULL ? to[known - from] : letter;
        }
    }
    *out = '\0';
    return p < end ? p + 1 : NULL;
}

/* The text that a vocabulary entry stands for, in place. */
static void to_text(char* s) {
    unsigned byte;
    char rest;
    if (sscanf(s, "<0x%2X%c", &byte, &rest) == 2 && rest == '>') {
        s[0] = (char)byte;
        s[1] = '\0';
        return;
    }
    const size_t length = strlen(s);
    if (length > 2 && s[0] == '<' && s[length - 1] == '>') {
        s[0] = '\0'; /* <s>, </s>, <unk> */
        return;
    }
    for (char* space; (space = strstr(s, "\xe2\x96\x81")) != NULL;) {
        *space = ' ';
        memmove(space + 1, space + 3, strlen(space + 3) + 1);
    }
}

static int keep(vocabulary* v, size_t id, char* text) {
    if (id > 10000000) return 0;
    if (id >= v->count) {
        const size_t count = id + 1 + id / 2;
        char** texts = realloc(v->texts, count * sizeof(*texts));
        if (texts == NULL) return 0;
        memset(texts + v->count, 0, (count - v->count) * sizeof(*texts));
        v->texts = texts;
        v->count = count;
    }
    free(v->texts[id]);
    v->texts[id] = text;
    return 1;
}

vocabulary* vocabulary_open(const char* json, size_t length) {
    static const char key[] = "\"vocab\"";
    const char* end = json + length;
    const char* p = json;
    while (p + sizeof(key) < end && memcmp(p, key, sizeof(key) - 1) != 0) ++p;
    while (p < end && *p != '{') ++p;
    vocabulary* v = p < end ? calloc(1, sizeof(*v)) : NULL;
    if (v == NULL) return NULL;
    for (++p; p < end && *p != '}';) {
        if (*p != '"') {
            ++p;
            continue;
        }
        const char* closing = p + 1;
        while (closing < end && *closing != '"') closing += *closing == '\\' ? 2 : 1;
        char* text = closing < end ? malloc((size_t)(closing - p) + 1) : NULL;
        p = text != NULL ? read_string(p + 1, end, text) : NULL;
        while (p != NULL && p < end && !isdigit((unsigned char)*p)) ++p;
        size_t id = 0;
        for (; p != NULL && p < end && isdigit((unsigned char)*p); ++p) {
            id = id * 10 + (size_t)(*p - '0');
        }
        if (p == NULL || !keep(v, id, text)) {
            free(text);
            vocabulary_close(v);
            return NULL;
        }
        to_text(text);
    }
    return v;
}

void vocabulary_close(vocabulary* v) {
    if (v == NULL) return;
    for (size_t i = 0; i < v->count; ++i) free(v->texts[i]);
    free(v->texts);
    free(v);
}

const char* vocabulary_text(const vocabulary* v, uint32_t token) {
    return token < v->count && v->texts[token] != NULL ? v->texts[token] : "";
}
