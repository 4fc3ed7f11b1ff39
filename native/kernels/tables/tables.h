// The tables that a build for this CPU family holds, one file each. dispatch.cpp puts them in
// order.
#pragma once

#include "native/kernels/kernel_table.h"

namespace awqe {

extern const KernelTable kTableReference;
#if defined(__x86_64__)
extern const KernelTable kTableAvx2;
extern const KernelTable kTableAvxVnni;
extern const KernelTable kTableAvx512;
#elif defined(__aarch64__)
extern const KernelTable kTableNeon;
extern const KernelTable kTableNeonDotprod;
extern const KernelTable kTableNeonI8mm;
#endif

}  // namespace awqe
