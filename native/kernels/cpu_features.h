// Which instruction sets this CPU and its operating system can run, as one mask. Owns detection
// only; what a kernel table needs stands in the table, the choice in dispatch.cpp.
#pragma once

#include <stdint.h>

namespace awqe {

constexpr uint32_t kCpuAvx2 = 1u << 0;        // AVX2, FMA and F16C
constexpr uint32_t kCpuAvxVnni = 1u << 1;     // VPDPBUSD on 256-bit registers, VEX encoding; GFNI
constexpr uint32_t kCpuAvx512Vnni = 1u << 2;  // AVX-512 F, BW, DQ, VL and VNNI
constexpr uint32_t kCpuNeon = 1u << 3;        // armv8.0
constexpr uint32_t kCpuDotprod = 1u << 4;     // SDOT
constexpr uint32_t kCpuI8mm = 1u << 5;        // SMMLA

// The mask of this CPU, found out once: a virtual machine's host answers each question for it. Safe
// from any thread.
uint32_t cpu_features();

}  // namespace awqe
