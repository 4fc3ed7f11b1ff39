// Choosing a kernel table: the best this CPU can run, or the one a user names. Owns the order of
// preference; it knows no operation. The choice is made once per session, above every loop.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

#include "native/kernels/kernel_table.h"

namespace awqe {

// Every table of this build, best first; the last one is `reference`, which any CPU can run. count:
// [1].
const KernelTable* const* kernel_tables(size_t* count);

// The table called `name`, or, when name is NULL or empty, the best one whose needs are inside
// `features` (cpu_features()). NULL when there is no such table or the CPU cannot run it; *problem
// then says so in one sentence.
const KernelTable* choose_kernels(const char* name, uint32_t features, std::string* problem);

}  // namespace awqe
