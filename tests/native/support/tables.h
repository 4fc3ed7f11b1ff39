// The kernel tables that this CPU can run, apart from the reference: what every kernel test loops
// over. Under an emulator the same loop reaches the tables of the emulated CPU.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"
#include "tests/native/support/check.h"

namespace awqe::test {

inline const KernelTable& reference_table() {
    size_t count = 0;
    const KernelTable* const* all = kernel_tables(&count);
    return *all[count - 1];
}

// The reference itself is among them, so that a build without any other table still runs every
// test's body.
inline std::vector<const KernelTable*> runnable_tables() {
    size_t count = 0;
    const KernelTable* const* all = kernel_tables(&count);
    std::vector<const KernelTable*> runnable;
    for (size_t i = 0; i < count; ++i) {
        if ((all[i]->required & ~cpu_features()) == 0) runnable.push_back(all[i]);
    }
    return runnable;
}

// Fails unless both arrays hold the same bits; `where` names the table and the case.
template <typename T>
void check_same_bits(const T* actual, const T* expected, size_t count, const std::string& where) {
    for (size_t i = 0; i < count; ++i) {
        if (std::memcmp(actual + i, expected + i, sizeof(T)) == 0) continue;
        std::ostringstream text;
        text << where << ": element " << i << " is " << +actual[i] << ", the reference gives "
             << +expected[i];
        fail(__FILE__, __LINE__, text.str());
    }
}

// The same for results that may hold NaN: which NaN it is may differ (native/ARITHMETIC.md,
// section 1), that it is one may not.
inline void check_same_values(const float* actual, const float* expected, size_t count,
                              const std::string& where) {
    for (size_t i = 0; i < count; ++i) {
        if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
        check_same_bits(actual + i, expected + i, 1, where + ", from element " + std::to_string(i));
    }
}

}  // namespace awqe::test
