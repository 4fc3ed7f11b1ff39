"""The naming grammar of the kernels, and the table of kernels in native/kernels/README.md.

A kernel is named

    <op>_<activation>_<weight>_<isa>    products: gemv_s8d_u4g_neon_dotprod
    <op>_<type>_<isa>                   everything else: rms_norm_f32_avx2

and its file after it. The file of a product leaves the weight out and defines one kernel for every
weight: gemv_s8d_neon_dotprod.cpp has gemv_s8d_u2g_neon_dotprod, u3g, u4g and u8g. The file of the
activations has all of them: activation_f32_avx2.cpp has silu_f32_avx2, gelu_f32_avx2 and so on.
It lies in the folder of its operation, next to its reference, and is listed in CMakeLists.txt.
Run without arguments it rewrites the README; with --check it fails if the README or a name is not
as it should be.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "native" / "kernels"
README = KERNELS / "README.md"

# Longest first, so that neon_dotprod is not read as an unknown word after neon.
ISAS = ("reference", "neon_dotprod", "neon_i8mm", "neon", "avx_vnni", "avx512", "avx2")
ISA_TEXT = {
    "reference": "plain C++, any CPU",
    "neon": "armv8.0 (Cortex-A53, A72)",
    "neon_dotprod": "SDOT (Cortex-A55, A76, A78)",
    "neon_i8mm": "SMMLA (Cortex-A710, Neoverse V1)",
    "avx2": "AVX2, FMA, F16C",
    "avx_vnni": "VPDPBUSD on 256 bits",
    "avx512": "AVX-512 F, BW, DQ, VL, VNNI",
}
COLUMNS = ("reference", "neon", "neon_dotprod", "neon_i8mm", "avx2", "avx_vnni", "avx512")
PRODUCTS = ("gemv", "gemm")
# Operation: its folder and the type words of its names.
OPERATIONS = {
    "gemv": ("gemv", "s8d"),
    "gemm": ("gemm", "s8d"),
    "quantize_act": ("quantize_act", "s8d"),
    "rms_norm": ("norm", "f32"),
    "layer_norm": ("norm", "f32"),
    "rope": ("rope", "f32"),
    "store_half": ("attention", "f16"),
    "attention": ("attention", "f16", "s8"),
    "soft_cap": ("soft_cap", "f32"),
    "activation": ("activation", "f32"),
    "embedding": ("embedding", "ug"),
    "router": ("router", "f32"),
    "softmax": ("router", "f32"),
}
WEIGHTS = ("u2g", "u3g", "u4g", "u5g", "u6g", "u8g")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "quick_gelu")
# Sources of kernel folders that are no kernels: one implementation for every CPU.
SHARED = {"rope/rope_angles.cpp", "router/choose_experts.cpp"}
NOT_OPERATIONS = ("tables",)

INTRODUCTION = """\
# Kernels

One folder per operation, the reference and every instruction set side by side. The folder's
contract header says what is computed, the file's name how. [ARITHMETIC.md](../ARITHMETIC.md) fixes
every float operation: all kernels of an operation give the same bits.

This file is written by `tests/checks/check_names.py`.

## Names

`<op>_<activation>_<weight>_<isa>` for products, `<op>_<type>_<isa>` for the rest. A file is named
after its function; that of a product leaves the weight out and has one function for each, that of
the activations has one function for each of these.

| word | meaning |
|---|---|
| `s8d` | int8 activations, quantised at run time per token and group |
| `u2g` … `u6g`, `u8g` | unsigned codes in r4k32, scale and zero-point per group |
| `ug` | any of these |
| `f32`, `f16`, `s8` | single precision; the fp16 and the int8 cache |
"""


def split_name(stem: str) -> tuple[str, str, str]:
    """Splits the name of a kernel's file.

    Returns:
        Operation, the word between, and instruction set.

    Raises:
        ValueError: The name does not follow the grammar.
    """
    isa = next((isa for isa in ISAS if stem.endswith("_" + isa)), None)
    if isa is None:
        raise ValueError(f"'{stem}' does not end with one of {', '.join(ISAS)}")
    rest = stem[: -len(isa) - 1]
    for operation, (_, *kinds) in OPERATIONS.items():
        if not rest.startswith(operation + "_"):
            continue
        word = rest[len(operation) + 1 :]
        if word in kinds:
            return operation, word, isa
        raise ValueError(
            f"'{stem}': between operation and instruction set '{word}' stands, not {kinds}"
        )
    raise ValueError(f"'{stem}' begins with no operation of {', '.join(OPERATIONS)}")


def kernels_of(operation: str, word: str) -> list[str]:
    """The kernels that a file defines, without the instruction set."""
    if operation in PRODUCTS:
        return [f"{operation}_{word}_{weight}" for weight in WEIGHTS]
    if operation == "activation":
        return [f"{activation}_{word}" for activation in ACTIVATIONS]
    return [f"{operation}_{word}"]


def scan() -> tuple[dict[str, set[str]], list[str]]:
    """Reads the kernel folders.

    Returns:
        The instruction sets of every kernel, in the order of OPERATIONS; a sentence for every
        broken rule.
    """
    kernels: dict[str, set[str]] = {
        kernel: set()
        for operation, (_, *words) in OPERATIONS.items()
        for word in words
        for kernel in kernels_of(operation, word)
    }
    problems: list[str] = []
    listed = (ROOT / "CMakeLists.txt").read_text()
    for path in sorted(KERNELS.glob("*/*.cpp")):
        name = path.relative_to(KERNELS).as_posix()
        if f"native/kernels/{name}" not in listed:
            problems.append(f"{name} is not listed in CMakeLists.txt")
        if name in SHARED or path.parent.name in NOT_OPERATIONS:
            continue
        try:
            operation, word, isa = split_name(path.stem)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if path.parent.name != OPERATIONS[operation][0]:
            problems.append(f"{name} belongs in the folder {OPERATIONS[operation][0]}")
        for kernel in kernels_of(operation, word):
            if not re.search(rf"\bvoid {kernel}_{isa}\(", path.read_text()):
                problems.append(f"{name} does not define the function {kernel}_{isa}")
            kernels[kernel].add(isa)
    for kernel, isas in kernels.items():
        if "reference" not in isas:
            problems.append(f"{kernel} has no reference")
    for table in sorted((KERNELS / "tables").glob("table_*.cpp")):
        isa = table.stem[len("table_") :]
        if isa not in ISAS:
            problems.append(f"tables/{table.name}: '{isa}' is no instruction set")
    return kernels, problems


def render(kernels: dict[str, set[str]]) -> str:
    """The text of native/kernels/README.md."""
    lines = [INTRODUCTION, "| instruction set | needs |", "|---|---|"]
    lines += [f"| `{isa}` | {ISA_TEXT[isa]} |" for isa in COLUMNS]
    lines += ["", "## Kernels", "", "| kernel | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|" + "---|" * len(COLUMNS))
    for kernel in kernels:
        cells = ["x" if isa in kernels[kernel] else "" for isa in COLUMNS]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        "`tables/table_<isa>.cpp` says which functions make a table; where an instruction set has",
        "no kernel of its own, its table names that of a smaller one.",
        "[lanes/README.md](lanes/README.md) describes the sixteen lanes of the float operations.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Writes or checks the README.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        description="Check kernel names and write native/kernels/README.md."
    )
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    arguments = parser.parse_args()
    kernels, problems = scan()
    text = render(kernels)
    if arguments.check:
        if not README.exists() or README.read_text() != text:
            problems.append(
                "native/kernels/README.md is out of date: run tests/checks/check_names.py"
            )
    else:
        README.write_text(text)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
