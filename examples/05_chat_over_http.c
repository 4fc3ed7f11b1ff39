/* Talks to a model that 'awq-edge serve' serves, in plain C99 and POSIX sockets, word by word:
 *
 *     cc -std=c99 -O2 examples/05_chat_over_http.c -o chat
 *     ./chat 127.0.0.1 8080
 *
 * Each line of standard input is said, and the whole conversation is sent again with the next one:
 * the server keeps what it has read of it. */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    char* text;
    size_t length;
} buffer;

static void add(buffer* to, const char* text, size_t length) {
    char* grown = realloc(to->text, to->length + length + 1);
    if (grown == NULL) exit(1);
    memcpy(grown + to->length, text, length);
    to->text = grown;
    to->length += length;
    to->text[to->length] = '\0';
}

/* Adds a text as the inside of a JSON string. */
static void add_escaped(buffer* to, const char* text) {
    for (; *text != '\0'; ++text) {
        char escaped[8];
        const unsigned char letter = (unsigned char)*text;
        const char* form = letter < 0x20 ? "\\u%04x" : strchr("\"\\", letter) ? "\\%c" : "%c";
        add(to, escaped, (size_t)snprintf(escaped, sizeof(escaped), form, letter));
    }
}

static void add_message(buffer* messages, const char* role, const char* text) {
    char head[64];
    const char* comma = messages->length > 0 ? "," : "";
    add(messages, head,
        (size_t)snprintf(head, sizeof(head), "%s{\"role\":\"%s\",\"content\":\"", comma, role));
    add_escaped(messages, text);
    add(messages, "\"}", 2);
}

/* Adds what a JSON string says; the server writes letters beyond ASCII as UTF-8. */
static void add_unescaped(buffer* to, const char* p) {
    for (; *p != '\0' && *p != '"'; ++p) {
        char letter = *p;
        if (letter == '\\') {
            static const char from[] = "nrtbf";
            static const char meant[] = "\n\r\t\b\f";
            const char* known = *++p != '\0' ? strchr(from, *p) : NULL;
            if (*p == '\0') return;
            letter = known != NULL ? meant[known - from] : *p;
            if (*p == 'u') { /* a control character */
                char digits[5] = {0};
                strncpy(digits, p + 1, 4);
                letter = (char)strtol(digits, NULL, 16);
                p += strlen(digits);
            }
        }
        add(to, &letter, 1);
    }
}

static FILE* connect_to(const char* host, const char* port) {
    struct addrinfo hints = {0};
    struct addrinfo* found = NULL;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found) != 0) return NULL;
    int fd = -1;
    for (struct addrinfo* one = found; one != NULL && fd < 0; one = one->ai_next) {
        fd = socket(one->ai_family, one->ai_socktype, one->ai_protocol);
        if (fd >= 0 && connect(fd, one->ai_addr, one->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    return fd < 0 ? NULL : fdopen(fd, "r+");
}

/* Sends the conversation, prints the answer while it comes, and keeps it. 0 if there was none. */
static int ask(const char* host, const char* port, const buffer* messages, buffer* answer) {
    static const char form[] = "{\"model\":\"\",\"stream\":true,\"messages\":[%s]}";
    FILE* server = connect_to(host, port);
    if (server == NULL) {
        fprintf(stderr, "nobody answers at %s port %s\n", host, port);
        return 0;
    }
    /* Of HTTP 1.0, so that the answer comes in one piece and ends with the connection. */
    fprintf(server,
            "POST /v1/chat/completions HTTP/1.0\r\nHost: %s:%s\r\n"
            "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
            host, port, sizeof(form) - 3 + messages->length);
    fprintf(server, form, messages->text);
    fflush(server);
    char* line = NULL;
    size_t room = 0;
    int fine = 0;
    if (getline(&line, &room, server) > 0) fine = strstr(line, " 200 ") != NULL;
    while (getline(&line, &room, server) > 0) {
        const char* piece = strstr(line, "\"delta\":{");
        piece = piece != NULL ? strstr(piece, "\"content\":\"") : NULL;
        if (!fine && line[0] == '{') fputs(line, stderr);
        if (piece == NULL || strncmp(line, "data:", 5) != 0) continue;
        const size_t before = answer->length;
        add_unescaped(answer, piece + strlen("\"content\":\""));
        fwrite(answer->text + before, 1, answer->length - before, stdout);
        fflush(stdout);
    }
    putchar('\n');
    free(line);
    fclose(server);
    return answer->length > 0;
}

int main(int argc, char** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s HOST PORT\n", argv[0]);
        return 2;
    }
    buffer messages = {0};
    char* line = NULL;
    size_t room = 0;
    int status = 0;
    while (status == 0 && getline(&line, &room, stdin) > 0) {
        buffer answer = {0};
        line[strcspn(line, "\n")] = '\0';
        add_message(&messages, "user", line);
        if (ask(argv[1], argv[2], &messages, &answer)) {
            add_message(&messages, "assistant", answer.text);
        } else {
            status = 1;
        }
        free(answer.text);
    }
    free(line);
    free(messages.text);
    return status;
}
