# Any x86-64 Linux PC. Cross-compiled like the boards, so that the library needs no newer glibc than theirs; kernels for AVX2
# and AVX-512 are in the library and chosen while it runs.
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(AWQE_ZIG_TARGET x86_64-linux-gnu.2.31)
set(AWQE_ZIG_CPU x86_64)
include("${CMAKE_CURRENT_LIST_DIR}/../zig.cmake")
