# Jetson Orin's CPU: Cortex-A78AE, armv8.2 with SDOT; the emulator's nearest core is the Cortex-A76.
set(AWQE_EMULATED_CPU cortex-a76)
include("${CMAKE_CURRENT_LIST_DIR}/../aarch64.cmake")
