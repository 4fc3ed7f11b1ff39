# What the 64-bit Arm targets share: one baseline, armv8.0 with CRC32, that runs on a Cortex-A53 and everything newer. Kernels
# for newer cores are in the same library and chosen while it runs, so all Arm targets give the same library.
#
# The including file sets AWQE_EMULATED_CPU, the CPU as which qemu-aarch64 runs the tests.
set(CMAKE_SYSTEM_PROCESSOR aarch64)
# 2.31 is the oldest glibc among the systems in use: Raspberry Pi OS bullseye and JetPack 5.
set(AWQE_ZIG_TARGET aarch64-linux-gnu.2.31)
# The Raspberry Pi 4's A72 has no cryptography extension, although the compiler's cortex_a72 does.
set(AWQE_ZIG_CPU cortex_a72-aes-sha2)
# Added to the baseline, not to a newer architecture: armv8.2 would bring LSE atomics into the file, and a Pi 4 has none.
set(AWQE_ARM_DOTPROD
    "-mcpu=${AWQE_ZIG_CPU}+dotprod"
    CACHE STRING "Compiler options for SDOT")
set(AWQE_ARM_I8MM
    "-mcpu=${AWQE_ZIG_CPU}+dotprod+i8mm"
    CACHE STRING "Compiler options for SMMLA")

find_program(AWQE_QEMU_AARCH64 NAMES qemu-aarch64 qemu-aarch64-static)
if(AWQE_QEMU_AARCH64 AND NOT CMAKE_HOST_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(CMAKE_CROSSCOMPILING_EMULATOR "${AWQE_QEMU_AARCH64};-cpu;${AWQE_EMULATED_CPU}")
  # Debian's libc6-dev-arm64-cross puts the target's loader and C library here.
  if(EXISTS /usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1)
    list(APPEND CMAKE_CROSSCOMPILING_EMULATOR -L /usr/aarch64-linux-gnu)
  endif()
endif()

include("${CMAKE_CURRENT_LIST_DIR}/zig.cmake")
