# Raspberry Pi 4B: Cortex-A72, armv8.0 without SDOT.
set(AWQE_EMULATED_CPU cortex-a72)
include("${CMAKE_CURRENT_LIST_DIR}/../aarch64.cmake")
