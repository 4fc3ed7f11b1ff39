// The self-test: every kernel that this CPU can run against the reference, bit for bit, on the
// machine itself and in seconds. Owns the grid of shapes and its inputs; the tests in
// tests/native/kernels go further and have an oracle. Refuses to print: results go to a callback.
#pragma once

#include <stdint.h>

#include <functional>

#include "native/kernels/kernel_table.h"

namespace awqe {

struct SelftestResult {
    const char* kernels;    // name of the table
    const char* operation;  // for people, for example "matrix-vector, 4 bits"
    uint32_t cases;
    uint32_t differing;  // cases that gave other bits than they should
};

// Returning false stops the self-test.
using SelftestReport = std::function<bool(const SelftestResult&)>;

// Compares the reference with what it gave when this code was written, which catches a wrong
// compiler or emulator; then every table that this CPU can run with the reference. False when
// `report` stopped it.
bool selftest(const SelftestReport& report);

// Compares one table with another, for the tests of the self-test.
bool selftest_table(const KernelTable& tested, const KernelTable& expected,
                    const SelftestReport& report);

}  // namespace awqe
