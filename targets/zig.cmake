# What every target's toolchain file shares: zig, from the ziglang package on PyPI, as the cross compiler. It brings its own
# C and C++ libraries and pins the glibc that the result needs, so no sysroot, binutils or system compiler is used.
#
# The including file sets AWQE_ZIG_TARGET (zig's triple with a glibc version) and AWQE_ZIG_CPU (zig's spelling of the
# baseline CPU). Owns the compiler command and nothing else: the instruction sets of single kernels stand in CMakeLists.txt.

# The interpreter that has ziglang. Give -DAWQE_ZIG_PYTHON=... to choose; otherwise the active virtual environment, the one
# beside the sources, then the PATH are tried.
if(NOT AWQE_ZIG_PYTHON)
  set(_candidates "$ENV{VIRTUAL_ENV}/bin/python" "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python"
                  "${Python_EXECUTABLE}" "${Python3_EXECUTABLE}" "${PYTHON_EXECUTABLE}" python3 python)
  foreach(_candidate IN LISTS _candidates)
    execute_process(
      COMMAND "${_candidate}" -c "import sys, ziglang; print(sys.executable)"
      OUTPUT_VARIABLE _found
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
      RESULT_VARIABLE _failed)
    if(NOT _failed)
      set(AWQE_ZIG_PYTHON "${_found}")
      break()
    endif()
  endforeach()
endif()
if(NOT AWQE_ZIG_PYTHON)
  message(FATAL_ERROR "No Python with the ziglang package was found. Install it (pip install ziglang==0.17.1) "
                      "or name the interpreter that has it with -DAWQE_ZIG_PYTHON=/path/of/python.")
endif()
set(AWQE_ZIG_PYTHON
    "${AWQE_ZIG_PYTHON}"
    CACHE FILEPATH "Python that has the ziglang package")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES AWQE_ZIG_PYTHON)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER "${AWQE_ZIG_PYTHON};-m;ziglang;cc")
set(CMAKE_CXX_COMPILER "${AWQE_ZIG_PYTHON};-m;ziglang;c++")
set(CMAKE_C_COMPILER_TARGET "${AWQE_ZIG_TARGET}")
set(CMAKE_CXX_COMPILER_TARGET "${AWQE_ZIG_TARGET}")
# One baseline for every file: zig builds its C++ library once per baseline, which takes two minutes.
set(CMAKE_C_FLAGS_INIT "-mcpu=${AWQE_ZIG_CPU}")
set(CMAKE_CXX_FLAGS_INIT "-mcpu=${AWQE_ZIG_CPU}")

# CMAKE_AR cannot be a list, so the archive commands are spelt out.
foreach(_language C CXX)
  set(CMAKE_${_language}_ARCHIVE_CREATE "\"${AWQE_ZIG_PYTHON}\" -m ziglang ar qc <TARGET> <OBJECTS>")
  set(CMAKE_${_language}_ARCHIVE_APPEND "\"${AWQE_ZIG_PYTHON}\" -m ziglang ar q <TARGET> <OBJECTS>")
  set(CMAKE_${_language}_ARCHIVE_FINISH "\"${AWQE_ZIG_PYTHON}\" -m ziglang ranlib <TARGET>")
endforeach()

# A library for a device is linked without symbols; a build with tests keeps them, because the instruction audit reads them.
# CMake's own trial programs link in the same way: zig would build its C++ library once more for them.
# The build machine's own strip does not know the target's format.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES AWQE_BUILD_TESTS)
if(NOT AWQE_BUILD_TESTS)
  set(CMAKE_EXE_LINKER_FLAGS_INIT "-s")
  set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s")
endif()
set(CMAKE_STRIP
    ""
    CACHE FILEPATH "Unused: the linker strips")

# Headers and libraries come from zig alone.
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE NEVER)
