# Raspberry Pi 5: Cortex-A76, armv8.2 with SDOT.
set(AWQE_EMULATED_CPU cortex-a76)
include("${CMAKE_CURRENT_LIST_DIR}/../aarch64.cmake")
