"""An Arm build runs where it is meant to: linking, exports and instructions of the library.

Give it the build directory of an Arm preset. It refuses a library that needs anything but glibc
2.31, that a kernel with 64 KB pages cannot map, that exports more than the C API, or that holds an
instruction newer than armv8.0 outside the kernels which are chosen for CPUs that have it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ALLOWED_LIBRARIES = {
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "ld-linux-aarch64.so.1",
}
NEWEST_GLIBC = (2, 31)
PAGE_SIZE = 0x10000  # the largest page of a 64-bit Arm kernel
# Of the runtime's own unwinder, linked in by the compiler: it reads registers of newer CPUs only
# after asking whether they exist.
FOREIGN_FUNCTIONS = re.compile(r"^_ZN9libunwind|^__libunwind_|^__aarch64_")
# Without a list of features the disassembler knows every instruction ever added; with it, a newer
# one is printed as unknown.
BASELINE = "+v8a,+fp-armv8,+neon,+crc"
LEVELS = {"neon_dotprod": BASELINE + ",+dotprod", "neon_i8mm": BASELINE + ",+dotprod,+i8mm"}


class MissingTool(Exception):
    """A program that the checks need is not installed."""


def find_tool(*names: str) -> str:
    """The first of ``names`` on the PATH, with LLVM's version suffixes tried too."""
    for name in names:
        suffixes = [""] + [f"-{version}" for version in range(22, 13, -1)]
        for suffix in suffixes if name.startswith("llvm-") else [""]:
            found = shutil.which(name + suffix)
            if found:
                return found
    raise MissingTool(f"none of {', '.join(names)} is installed")


def run(*command: str) -> str:
    """The standard output of ``command``, which must succeed, in the language that is read here."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def linking_problems(library: Path) -> Iterator[str]:
    """What stands in the way of loading ``library`` on an older system."""
    readelf = find_tool("aarch64-linux-gnu-readelf", "readelf")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run(readelf, "-dW", str(library)))
    versions = set(re.findall(r"GLIBC_([\d.]+)", run(readelf, "-VW", str(library))))
    program = run(readelf, "-lW", str(library)).splitlines()
    segments = [line.split() for line in program if line.split()[:1] == ["LOAD"]]
    for what, found in (("library", needed), ("glibc version", versions), ("segment", segments)):
        if not found:
            yield f"readelf names no {what} of it"
    for name in needed:
        if name not in ALLOWED_LIBRARIES:
            yield f"needs {name}, which a board may not have"
    for version in sorted(versions):
        if tuple(int(part) for part in version.split(".")) > NEWEST_GLIBC:
            yield f"needs glibc {version}; Raspberry Pi OS bullseye and JetPack 5 have 2.31"
    for segment in segments:
        if int(segment[-1], 16) < PAGE_SIZE:
            yield f"a segment is aligned to {segment[-1]}; kernels with 64 KB pages refuse it"


def export_problems(library: Path) -> Iterator[str]:
    """Symbols that the library offers besides the C API."""
    readelf = find_tool("aarch64-linux-gnu-readelf", "readelf")
    names = list(_symbols(run(readelf, "-W", "--dyn-syms", str(library)), "GLOBAL", "WEAK"))
    if not names:
        yield "exports nothing"
    for name in names:
        if not name.startswith("awqe_"):
            yield f"exports {name}, which is not part of the C API"


def _symbols(table: str, *binds: str) -> Iterator[str]:
    """Names of the defined symbols in the output of ``readelf --syms``."""
    for line in table.splitlines():
        columns = line.split()
        if len(columns) == 8 and columns[4] in binds and columns[6] != "UND":
            yield columns[7]


def unknown_instructions(library: Path, features: str) -> Counter[str]:
    """How many instructions beyond ``features`` each function holds."""
    text = run(
        find_tool("llvm-objdump"), "-d", "--no-show-raw-insn", f"--mattr={features}", str(library)
    )
    if "ret" not in text:
        raise ValueError(f"{library} was not disassembled")
    counts: Counter[str] = Counter()
    function = "code before the first symbol"
    for line in text.splitlines():
        heading = re.match(r"^[0-9a-f]+ <(.+)>:$", line)
        if heading:
            function = heading.group(1)
        elif "<unknown>" in line:
            counts[function] += 1
    return counts


def kernel_functions(build: Path, *isas: str) -> set[str]:
    """Every function in the objects of the kernels for ``isas``."""
    readelf = find_tool("aarch64-linux-gnu-readelf", "readelf")
    functions: set[str] = set()
    for isa in isas:
        objects = sorted(build.glob(f"CMakeFiles/awq_edge_objects.dir/**/*_{isa}.cpp.o"))
        if not objects:
            raise ValueError(f"{build} holds no object of a {isa} kernel")
        for path in objects:
            functions |= set(_symbols(run(readelf, "-sW", str(path)), "LOCAL", "GLOBAL", "WEAK"))
    return functions


def instruction_problems(build: Path, library: Path) -> Iterator[str]:
    """Instructions that a CPU without them would meet, and kernels that do not use theirs."""
    # (what the disassembler may know, whose functions may hold more)
    audits = [(BASELINE, ("neon_dotprod", "neon_i8mm")), (LEVELS["neon_dotprod"], ("neon_i8mm",))]
    for features, isas in audits:
        allowed = kernel_functions(build, *isas)
        found = unknown_instructions(library, features)
        for function, count in sorted(found.items()):
            if function not in allowed and not FOREIGN_FUNCTIONS.match(function):
                yield f"{function} holds {count} instructions beyond {features}"
        if not any(function in allowed for function in found):
            yield f"no kernel of {' or '.join(isas)} holds an instruction beyond {features}"
    for function, count in sorted(unknown_instructions(library, LEVELS["neon_i8mm"]).items()):
        if not FOREIGN_FUNCTIONS.match(function):
            yield f"{function} holds {count} instructions that no kernel table asks for"


def weak_symbol_problems(build: Path) -> Iterator[str]:
    """Code of kernels that the linker could use for others: inline functions are weak symbols."""
    readelf = find_tool("aarch64-linux-gnu-readelf", "readelf")
    pattern = "CMakeFiles/awq_edge_objects.dir/native/kernels/**/*_neon*.cpp.o"
    paths = sorted(build.glob(pattern))
    if not paths:
        yield f"{build} holds no objects of kernels"
    for path in paths:
        for name in _symbols(run(readelf, "-sW", str(path)), "WEAK"):
            yield f"{path.name} defines the weak symbol {name}"


def problems(build: Path) -> list[str]:
    """Everything that is wrong with the library in ``build``."""
    library = build / "libawq_edge.so"
    return [
        *linking_problems(library),
        *export_problems(library),
        *instruction_problems(build, library),
        *weak_symbol_problems(build),
    ]


def main() -> int:
    """Checks the build directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="build directory of an Arm preset")
    try:
        found = problems(parser.parse_args().build)
    except (MissingTool, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"check_arm_library: {error}", file=sys.stderr)
        return 2
    for problem in found:
        print(f"libawq_edge.so: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
