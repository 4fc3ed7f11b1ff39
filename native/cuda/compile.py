"""Compiles kernels/module.cu for every GPU that the library carries code for, with NVRTC.

    compile.py OUTPUT_FOLDER [NAME ...]

Owns the list of targets and the compiler's options. NVRTC comes from the package
nvidia-cuda-nvrtc-cu12 (12.6: what JetPack 6 and every newer driver read); neither nvcc nor a host
compiler nor a GPU is needed. Exits with one sentence where something is missing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parent / "kernels"

# Machine code for the boards and the GPU of a data centre; what other GPUs (Ampere and newer)
# compile for themselves. compute_87 would not assemble for 8.0 and 8.6.
TARGETS = {"sm_87.cubin": "sm_87", "sm_90.cubin": "sm_90a", "compute_80.ptx": "compute_80"}

# -fmad=false and the precise operations: native/ARITHMETIC.md fixes every rounding.
OPTIONS = (
    "--std=c++17",
    "-fmad=false",
    "-ftz=false",
    "-prec-div=true",
    "-prec-sqrt=true",
)


def library() -> ctypes.CDLL:
    """NVRTC 12, from its package beside this interpreter or from the system."""
    for folder in sys.path:
        for path in sorted(Path(folder).glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.12*")):
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL("libnvrtc.so.12")
    except OSError:
        raise SystemExit(
            "NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12==12.6.85, or configure with "
            "-DAWQE_WITH_CUDA=OFF."
        ) from None


def compiled(nvrtc: ctypes.CDLL, architecture: str) -> bytes:
    """The module for one architecture: a cubin for sm_*, PTX for compute_*."""
    headers = sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h")])
    texts = (ctypes.c_char_p * len(headers))(*[path.read_bytes() for path in headers])
    names = (ctypes.c_char_p * len(headers))(*[path.name.encode() for path in headers])
    program = ctypes.c_void_p()
    source = (KERNELS / "module.cu").read_bytes()
    if nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source, b"module.cu", len(headers), texts, names
    ):
        raise SystemExit("NVRTC takes no program.")
    options = [f"--gpu-architecture={architecture}".encode()]
    options += [option.encode() for option in OPTIONS]
    if os.environ.get("AWQE_FEW_PRODUCTS"):  # for tests: two widths stand for all
        options.append(b"-DAWQE_FEW_PRODUCTS")
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status:
        raise SystemExit(f"NVRTC refuses the kernels for {architecture}:\n{log.value.decode()}")
    kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, image)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image.raw


def main() -> None:
    """Writes the modules that are asked for, by default all."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    nvrtc = library()
    for name in sys.argv[2:] or TARGETS:
        (folder / name).write_bytes(compiled(nvrtc, TARGETS[name]))


if __name__ == "__main__":
    main()
