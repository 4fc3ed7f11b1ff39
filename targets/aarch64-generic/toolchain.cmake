# Any 64-bit Arm Linux machine; tested as the oldest core that the emulator knows.
set(AWQE_EMULATED_CPU cortex-a53)
include("${CMAKE_CURRENT_LIST_DIR}/../aarch64.cmake")
