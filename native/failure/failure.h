// The one exception that the library throws on purpose: a status of the C API and the sentence that
// goes with it. Owns no mapping to the C structures; boundary.h does that.
#pragma once

#include <exception>

#include "awq_edge.h"

namespace awqe {

class Failure : public std::exception {
  public:
    // Copies `message`, cut to what an awqe_error holds, so that throwing allocates nothing of our
    // own.
    Failure(awqe_status status, const char* message) noexcept;

    awqe_status status() const noexcept { return status_; }
    const char* what() const noexcept override { return message_; }

  private:
    awqe_status status_;
    char message_[sizeof(awqe_error::message)];
};

// Throws a Failure with a message formatted as printf does.
[[noreturn]] void fail(awqe_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

}  // namespace awqe
