// Formats and cuts the messages of Failure; see failure.h.
#include "native/failure/failure.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace awqe {

Failure::Failure(awqe_status status, const char* message) noexcept : status_(status) {
    size_t length = strnlen(message, sizeof(message_));
    if (length == sizeof(message_)) {
        // Cut before a whole UTF-8 character: bytes 10xxxxxx continue one.
        length = sizeof(message_) - 1;
        while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xC0) == 0x80) --length;
    }
    std::memcpy(message_, message, length);
    message_[length] = '\0';
}

void fail(awqe_status status, const char* format, ...) {
    char text[2 * sizeof(awqe_error::message)];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    throw Failure(status, text);
}

}  // namespace awqe
