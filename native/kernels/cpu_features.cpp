// See cpu_features.h. x86: the compiler's run-time support, which also asks whether the operating
// system saves the registers. Arm: the kernel's auxiliary vector.
#include "native/kernels/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace awqe {

#if defined(__x86_64__)

namespace {

// Two bits that not every compiler's run-time support has a name for. Neither adds registers to
// save: where the operating system supports AVX2, it supports these.
bool has_f16c() {
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & 1u << 29) != 0;
}

bool has_avx_vnni() {
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 4) != 0;
}

}  // namespace

uint32_t cpu_features() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (!avx2) return 0;
    uint32_t mask = kCpuAvx2;
    if (has_avx_vnni()) mask |= kCpuAvxVnni;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        mask |= kCpuAvx512Vnni;
    }
    return mask;
}

#elif defined(__aarch64__)

uint32_t cpu_features() {
    // Bit numbers of the Linux interface: older system headers do not name them all.
    constexpr unsigned long kHwcapAsimdDp = 1ul << 20;
    constexpr unsigned long kHwcap2I8mm = 1ul << 13;
    uint32_t mask = kCpuNeon;
    if (getauxval(AT_HWCAP) & kHwcapAsimdDp) mask |= kCpuDotprod;
    if (getauxval(AT_HWCAP2) & kHwcap2I8mm) mask |= kCpuI8mm;
    return mask;
}

#else

uint32_t cpu_features() { return 0; }

#endif

}  // namespace awqe
