"""Audits the compiled objects: no code may reach a CPU that cannot run it.

Two rules over the object files of a build folder, by nm and objdump:

1. A kernel object defines no weak symbol. The linker keeps one copy of a weak function for the
   whole program, and it might keep the one that was compiled for the largest instruction set.
2. An object holds no instruction above its instruction set: x86-64 baseline objects nothing of
   AVX, AVX2 objects nothing of AVX-512 and no VNNI, Arm baseline objects no SDOT, SMMLA, LSE
   atomic or cryptographic instruction.

    python tests/checks/check_kernel_objects.py build/release
    python tests/checks/check_kernel_objects.py build/rpi4b --tools aarch64-linux-gnu-
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_names import ISAS

# Instructions, as objdump writes them.
_X86_AVX = r"(?:\{vex\} )?v[a-z0-9]+\s"  # every AVX mnemonic begins with v
_X86_AVX512 = r".*(?:%zmm|%[xy]mm(?:1[6-9]|2[0-9]|3[01])|%k[0-7]\b)"
_X86_VNNI = r"(?:\{vex\} )?vpdp\w+\s"
_ARM_ATOMIC_SUFFIX = r"(?:a|l|al)?[bh]?"
_ARM_LSE = (
    r"(?:(?:ld|st)(?:add|clr|eor|set|smax|smin|umax|umin)|casp?|swp)" + _ARM_ATOMIC_SUFFIX + r"\s"
)
_ARM_CRYPTO = r"(?:aes(?:e|d|mc|imc)\s|sha(?:1|256|512)\w+\s|pmull2?\s.*\.1q)"
_ARM_DOT = r"(?:[su]dot|usdot|sudot)\s"
_ARM_MATRIX = r"(?:[su]mmla|usmmla|bfmmla)\s"


def forbidden(machine: str, isa: str) -> list[tuple[str, str]]:
    """What an object of this instruction set must not hold.

    Args:
        machine: "x86" or "arm".
        isa: One of the instruction sets of check_names.

    Returns:
        Pairs of a regular expression over a whole instruction and its name in a message.
    """
    if machine == "x86":
        return {
            "avx512": [],
            "avx_vnni": [(_X86_AVX512, "AVX-512")],
            "avx2": [(_X86_AVX512, "AVX-512"), (_X86_VNNI, "VNNI")],
        }.get(isa, [(_X86_AVX, "AVX")])
    rules = [(_ARM_LSE, "LSE atomic"), (_ARM_CRYPTO, "cryptographic")]
    if isa != "neon_i8mm":
        rules.append((_ARM_MATRIX, "matrix multiplication"))
        if isa != "neon_dotprod":
            rules.append((_ARM_DOT, "dot product"))
    return rules


def isa_of(path: Path) -> str:
    """The instruction set that an object file may use, by its name."""
    stem = path.name.split(".")[0]
    return next((isa for isa in ISAS if stem.endswith("_" + isa)), "reference")


def machine_of(path: Path, text: str) -> str:
    """Whose instructions objdump says that it wrote, wherever the file lies.

    Raises:
        ValueError: Those of neither machine that there are rules for.
    """
    said = re.search(rf"^{re.escape(str(path))}: +file format (\S+)$", text, re.MULTILINE)
    machine = {"elf64-x86-64": "x86", "elf64-littleaarch64": "arm"}.get(said[1] if said else "")
    if machine is None:
        raise ValueError(f"{path}: objdump names no machine that this audit has rules for")
    return machine


def output_of(command: list[str]) -> str:
    """Standard output of a program that must succeed, in the language that is read here."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def audit(path: Path, tools: str) -> list[str]:
    """Checks one object file.

    Returns:
        A sentence for every broken rule.
    """
    problems = []
    if "/kernels/" in path.as_posix() and "/tests/" not in path.as_posix():
        for line in output_of([tools + "nm", "-C", str(path)]).splitlines():
            match = re.match(r"[0-9a-f]+ ([WVu]) (.*)", line)
            # Baseline code may use the standard library: its copies run on every CPU.
            if match and isa_of(path) != "reference":
                problems.append(f"{path.name}: weak symbol {match[2]}")
    text = output_of([tools + "objdump", "-d", "--no-show-raw-insn", str(path)])
    machine = machine_of(path, text)
    rules = [(re.compile(pattern), name) for pattern, name in forbidden(machine, isa_of(path))]
    function = "?"
    read = 0
    for line in text.splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:", line)
        if header:
            function = header[1]
            continue
        parts = line.split("\t", 1)
        if len(parts) < 2 or not parts[0].rstrip().endswith(":"):
            continue
        read += 1
        # Comments name addresses and symbols, not instructions.
        instruction = re.split(r"[#<]|//", parts[1])[0].strip() + " "
        for rule, name in rules:
            if rule.match(instruction):
                problems.append(
                    f"{path.name}: {name} instruction in {function}: {instruction.strip()}"
                )
                break
    if not read and isa_of(path) != "reference" and not path.name.startswith("table_"):
        problems.append(f"{path.name}: no instruction was read")
    return problems


def main() -> int:
    """Audits a build folder.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        description="Audit the instructions of a build's object files."
    )
    parser.add_argument("build", type=Path, help="CMake's build folder")
    parser.add_argument("--tools", default="", help="prefix of objdump and nm")
    arguments = parser.parse_args()
    folder = arguments.build / "CMakeFiles" / "awq_edge_objects.dir"
    objects = sorted(folder.rglob("*.o"))
    if not any(isa_of(path) != "reference" for path in objects):
        print(f"{folder} holds no kernel objects: build awq_edge first", file=sys.stderr)
        return 1
    try:
        problems = [problem for path in objects for problem in audit(path, arguments.tools)]
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"check_kernel_objects: {error}", file=sys.stderr)
        return 2
    for problem in problems[:50]:
        print(problem, file=sys.stderr)
    print(f"{len(objects)} objects, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
