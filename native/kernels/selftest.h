// The self-test: every kernel that this CPU can run against the reference, bit for bit, on the
// machine itself and in seconds. Owns the grid of shapes and its inputs; the tests in
// tests/native/kernels go further and have an oracle. Refuses to print.
#pragma once

#include <stdint.h>

#include <vector>

#include "native/kernels/kernel_table.h"

namespace awqe {

struct SelftestResult {
    const char* kernels;    // name of the table
    const char* operation;  // for people, for example "matrix-vector, 4 bits"
    uint32_t cases;
    uint32_t differing;  // cases that gave other bits than they should
};

// A walk over the operations of some tables, one per step: who tells somebody about a result does
// so between two steps.
class Selftest {
  public:
    // The reference with what it gave when this code was written, which catches a wrong compiler or
    // emulator; then every table that this CPU can run with the reference.
    Selftest();
    // One table with another, for the tests of the self-test.
    Selftest(const KernelTable& tested, const KernelTable& expected);

    // Runs the next operation. False if there is none.
    bool next(SelftestResult* result);

  private:
    const KernelTable& reference_;
    std::vector<const KernelTable*> tested_;
    std::vector<std::vector<uint64_t>> expected_;  // of each operation, the hash of each case
    size_t table_ = 0;
    size_t operation_ = 0;
    bool recorded_;  // the reference itself is still being compared with what is recorded
};

}  // namespace awqe
