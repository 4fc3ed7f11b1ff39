// See cpu_features.h. x86: the CPU's own words, and the operating system's of the registers that it
// saves; compilers' run-time support for this differs, and zig's knows no feature at all. Arm: the
// kernel's auxiliary vector.
#include "native/kernels/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace awqe {

#if defined(__x86_64__)

namespace {

struct CpuidLeaf {
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
};

// All zero if this CPU does not have the leaf.
CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
    CpuidLeaf r;
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
    return r;
}

bool all_set(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

// The registers that the operating system saves: XCR0. Only where the CPU has the instruction.
uint32_t saved_registers() {
    uint32_t low = 0;
    uint32_t high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

uint32_t detect() {
    // Bit numbers of Intel's and AMD's manuals; <cpuid.h> does not name them all everywhere.
    constexpr uint32_t kFma = 1u << 12;  // leaf 1, ECX
    constexpr uint32_t kXgetbv = 1u << 27;
    constexpr uint32_t kAvx = 1u << 28;
    constexpr uint32_t kF16c = 1u << 29;
    constexpr uint32_t kAvx2 = 1u << 5;  // leaf 7, EBX
    constexpr uint32_t kAvx512F = 1u << 16;
    constexpr uint32_t kAvx512Dq = 1u << 17;
    constexpr uint32_t kAvx512Bw = 1u << 30;
    constexpr uint32_t kAvx512Vl = 1u << 31;
    constexpr uint32_t kGfni = 1u << 8;  // leaf 7, ECX
    constexpr uint32_t kAvx512Vnni = 1u << 11;
    constexpr uint32_t kAvxVnni = 1u << 4;            // leaf 7, subleaf 1, EAX
    constexpr uint32_t kSavesYmm = 0x06;              // XCR0: XMM, YMM
    constexpr uint32_t kSavesZmm = 0xe0 | kSavesYmm;  // and masks, ZMM

    if (!all_set(cpuid(1, 0).ecx, kFma | kXgetbv | kAvx | kF16c)) return 0;
    const uint32_t saved = saved_registers();
    const CpuidLeaf extended = cpuid(7, 0);
    if (!all_set(saved, kSavesYmm) || !all_set(extended.ebx, kAvx2)) return 0;
    uint32_t mask = kCpuAvx2;
    // Subleaf 1 exists only where subleaf 0 says so.
    if (extended.eax >= 1 && all_set(cpuid(7, 1).eax, kAvxVnni) && all_set(extended.ecx, kGfni)) {
        mask |= kCpuAvxVnni;
    }
    if (all_set(saved, kSavesZmm) && all_set(extended.ecx, kAvx512Vnni) &&
        all_set(extended.ebx, kAvx512F | kAvx512Dq | kAvx512Bw | kAvx512Vl)) {
        mask |= kCpuAvx512Vnni;
    }
    return mask;
}

}  // namespace

#elif defined(__aarch64__)

namespace {

uint32_t detect() {
    // Bit numbers of the Linux interface: older system headers do not name them all.
    constexpr unsigned long kHwcapAsimdDp = 1ul << 20;
    constexpr unsigned long kHwcap2I8mm = 1ul << 13;
    uint32_t mask = kCpuNeon;
    if (getauxval(AT_HWCAP) & kHwcapAsimdDp) mask |= kCpuDotprod;
    if (getauxval(AT_HWCAP2) & kHwcap2I8mm) mask |= kCpuI8mm;
    return mask;
}

}  // namespace

#else

namespace {

uint32_t detect() { return 0; }

}  // namespace

#endif

uint32_t cpu_features() {
    static const uint32_t mask = detect();
    return mask;
}

}  // namespace awqe
