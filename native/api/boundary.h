// The border between C++ and C: guard() turns whatever a body throws into a status and a message.
// It is the only such mapping in the library, and the only place that writes an awqe_error.
#pragma once

#include <cstring>
#include <exception>
#include <new>

#include "awq_edge.h"
#include "native/failure/failure.h"

namespace awqe {

inline awqe_status report(awqe_error* error, const Failure& failure) noexcept {
    if (error != nullptr) {
        error->status = failure.status();
        static_assert(sizeof(error->message) == sizeof(awqe_error::message));
        std::memcpy(error->message, failure.what(), std::strlen(failure.what()) + 1);
    }
    return failure.status();
}

// Runs `body`; `error` may be NULL and is cleared on success.
template <class Body>
awqe_status guard(awqe_error* error, Body&& body) noexcept {
    try {
        body();
    } catch (const Failure& failure) {
        return report(error, failure);
    } catch (const std::bad_alloc&) {
        return report(error, Failure(AWQE_OUT_OF_MEMORY, "the system has no memory left for this"));
    } catch (const std::exception& other) {
        return report(error, Failure(AWQE_INTERNAL, other.what()));
    } catch (...) {
        return report(error, Failure(AWQE_INTERNAL, "an exception of an unknown kind"));
    }
    if (error != nullptr) {
        error->status = AWQE_OK;
        error->message[0] = '\0';
    }
    return AWQE_OK;
}

// An argument that must not be NULL.
template <class T>
T& required(T* pointer, const char* name) {
    if (pointer == nullptr) fail(AWQE_INVALID_ARGUMENT, "%s is NULL", name);
    return *pointer;
}

// A structure of the caller, whose size says which version of the header it was compiled with.
template <class Structure>
Structure& sized(Structure* structure, const char* name) {
    required(structure, name);
    if (structure->struct_size != sizeof(Structure)) {
        fail(AWQE_INVALID_ARGUMENT, "%s.struct_size is %u, this library needs %zu", name,
             structure->struct_size, sizeof(Structure));
    }
    return *structure;
}

}  // namespace awqe
