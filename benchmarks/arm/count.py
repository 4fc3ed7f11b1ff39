"""Instruction counts of the Arm kernels under emulation, and a model's cycles for their loops.

    python benchmarks/arm/count.py [--token] [--picture] [--llama-cpp SOURCES] [--json FILE]

Neither is a speed: a count says how much work a kernel gives a core, and llvm-mca's cycles say how
well a model of that core could do it with every byte in the first-level cache. Only a board gives a
speed. Counts are exact differences between two numbers of repetitions in one thread, with an empty
environment; compare them only between builds of one compiler.

--llama-cpp builds llama.cpp from its sources with the same compiler for the same CPU and counts its
tokens in the same way, Q4_0 with a Q6_K head. llama-cpp-python's source archive holds them:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz
    python benchmarks/arm/count.py --llama-cpp llama_cpp_python-0.3.36/vendor/llama.cpp

Needs ziglang, cmake, ninja, a C compiler, qemu-aarch64 of version 7 or 8 (newer ones refuse the
plugin) and the C library in /usr/aarch64-linux-gnu; for cycles llvm-objdump and llvm-mca, whose
model of the Neoverse N1 is its own from version 19 on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/rpi4b"
PEER_BUILD = ROOT / "build/llama.cpp-rpi4b"
OBJECTS = BUILD / "CMakeFiles/awq_edge_objects.dir/native/kernels"
SYSROOT = Path("/usr/aarch64-linux-gnu")

# The emulator's CPU for each table.
CPUS = {"neon": "cortex-a72", "neon_dotprod": "cortex-a76", "neon_i8mm": "max"}
ROWS, COLUMNS, TOKENS, GROUP = 128, 2048, 512, 128
# Multiply-adds of one instruction: the vector instructions that do a kernel's work.
PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32}
# LLVM's cortex-a72 is its model of the A57; its neoverse-n1 is the server sibling of the A76.
MODELS = {"neon": "cortex-a72", "neon_dotprod": "neoverse-n1"}


@dataclass(frozen=True)
class Count:
    """Instructions of a kernel per unit of its work."""

    table: str
    operation: str
    unit: str
    instructions: float


@dataclass(frozen=True)
class Cycles:
    """Modelled cycles of a kernel's innermost loop."""

    table: str
    operation: str
    model: str
    tool: str
    loop_instructions: int
    cycles_per_product: float


class Problem(Exception):
    """Something that counting needs is missing or failed; the message says what."""


def require(*names: str) -> str:
    """The first program of ``names`` that is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise Problem(f"{names[0]} is not installed")


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Standard output and error of ``command``, which must succeed."""
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        raise Problem(f"{' '.join(command)} failed:\n{result.stdout}")
    return result.stdout


def build_tools() -> tuple[str, dict[str, str]]:
    """CMake, and an environment in which it finds the tools that were installed beside it."""
    cmake = require("cmake")
    path = f"{Path(cmake).parent}{os.pathsep}{os.environ['PATH']}"
    return cmake, {**os.environ, "PATH": path}


def build(directory: Path) -> Path:
    """Builds the programs that are counted, and the plugin, which goes into ``directory``."""
    cmake, tools = build_tools()
    run(
        *(cmake, "--preset", "rpi4b", "-DAWQE_BUILD_BENCHMARKS=ON"),
        f"-DAWQE_ZIG_PYTHON={sys.executable}",
        environment=tools,
    )
    targets = ("--target", "kernel_loop", "token_loop", "picture_loop")
    run(cmake, "--build", "--preset", "rpi4b", *targets, environment=tools)
    plugin = directory / "libicount.so"
    source = str(ROOT / "benchmarks/arm/icount.c")
    flags = ("-std=c99", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
    run(require("cc", "gcc", "clang"), *flags, "-o", str(plugin), source)
    return plugin


def build_peer(sources: Path) -> Path:
    """Builds llama.cpp by our own toolchain file; returns the program that is counted."""
    if not (sources / "include/llama.h").is_file():
        raise Problem(f"{sources} does not hold llama.cpp: there is no include/llama.h")
    cmake, tools = build_tools()
    run(
        *(cmake, "-G", "Ninja", "-S", "benchmarks/arm/llama_cpp", "-B", str(PEER_BUILD)),
        f"-DLLAMA_CPP_SOURCE={sources.resolve()}",
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'targets/rpi4b/toolchain.cmake'}",
        f"-DAWQE_ZIG_PYTHON={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release",
        environment=tools,
    )
    run(cmake, "--build", str(PEER_BUILD), "--target", "llama_cpp_loop", environment=tools)
    return PEER_BUILD / "llama_cpp_loop"


def count(plugin: Path, cpu: str, program: str | Path, *arguments: object) -> int:
    """Instructions that one run of ``program`` executes, start and end included."""
    output = run(
        *(require("qemu-aarch64"), "-cpu", cpu, "-seed", "1", "-plugin", str(plugin)),
        *("-L", str(SYSROOT), str(BUILD / program), *map(str, arguments)),
        environment={},
    )
    found = re.search(r"instructions: (\d+)", output)
    if found is None:
        raise Problem(f"the plugin reported nothing:\n{output}")
    return int(found.group(1))


def count_kernel(plugin: Path, table: str, operation: str, *numbers: int) -> int:
    """Instructions of one call of a kernel."""
    cpu = CPUS[table]
    once = count(plugin, cpu, "kernel_loop", table, operation, 1, *numbers)
    thrice = count(plugin, cpu, "kernel_loop", table, operation, 3, *numbers)
    return (thrice - once) // 2


def kernel_counts(plugin: Path) -> list[Count]:
    """One count for every kernel of every table that has one of its own."""
    counts = []

    def add(table: str, operation: str, unit: str, units: int, kernel: str, *n: int) -> None:
        instructions = count_kernel(plugin, table, kernel, *n)
        counts.append(Count(table, operation, unit, instructions / units))

    weights = ROWS * COLUMNS
    for table in ("neon", "neon_dotprod"):  # neon_i8mm takes the gemv of neon_dotprod
        for bits in (4, 3, 2, 8):
            name = f"gemv_s8d_u{bits}g, groups of {GROUP}"
            add(table, name, "weight", weights, "gemv", bits, GROUP, ROWS, COLUMNS)
    for table in CPUS:
        for bits in (4, 3, 2, 8):
            name = f"gemm_s8d_u{bits}g, {TOKENS} tokens"
            units = weights * TOKENS
            add(table, name, "product", units, "gemm", bits, GROUP, ROWS, COLUMNS, TOKENS)
        for few in (2, 4, 8):  # sequences that are decoded together
            name = f"gemm_s8d_u4g, {few} tokens"
            add(table, name, "product", weights * few, "gemm", 4, GROUP, ROWS, COLUMNS, few)
    heads, size, positions = 8, 64, 512
    add("neon", "quantize_act_s8d", "input", COLUMNS, "quantize_act", GROUP, COLUMNS)
    add("neon", "rms_norm_f32", "input", COLUMNS, "rms_norm", COLUMNS)
    add("neon", "silu_f32", "input", COLUMNS, "silu", COLUMNS)
    add("neon", "store_half_f16", "input", COLUMNS, "store_half", COLUMNS)
    add("neon", "rope_f32", "input", heads * size, "rope", heads, size)
    for queries in (1, 4):
        name = f"attention_f16, {queries} {'query' if queries == 1 else 'queries'} of {size}"
        elements = queries * size * positions
        add("neon", name, "cached element", elements, "attention", queries, size, positions)
    return counts


def token_counts(plugin: Path, directory: Path, peer: Path | None) -> list[Count]:
    """Whole tokens of TinyLlama's shape, cut to two layers, with random weights."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from dataclasses import replace

    from peer_shapes import write_llama_cpp
    from shapes import architecture, write_awq_edge

    shape = replace(architecture("tinyllama-1.1b"), layers=2)
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_size
    layer = shape.hidden_size * (attention + 3 * shape.feed_forward_size)
    weights = shape.layers * layer + shape.vocabulary_size * shape.hidden_size
    counts = []

    def add(system: str, cpu: str, program: str | Path, model: Path, head: str) -> float:
        few = count(plugin, cpu, program, model, 1)
        more = count(plugin, cpu, program, model, 3)
        token = (more - few) / 2
        name = f"a token of tinyllama-1.1b, 2 layers, {head}"
        counts.append(Count(system, name, "token, in millions", token / 1e6))
        counts.append(Count(system, name, "weight", token / weights))
        return token

    model = directory / "model.awq.gguf"
    write_awq_edge(shape, model)
    tables = ("neon", "neon_dotprod")
    ours = [add(table, CPUS[table], "token_loop", model, "head at 8 bits") for table in tables]
    if peer is not None:
        model = directory / "model.q4_0.gguf"
        write_llama_cpp(shape, "llama", model)
        theirs = add("llama.cpp", CPUS["neon"], peer, model, "head in Q6_K")
        ratio = ours[0] / theirs
        counts.append(Count("neon", "a token", "instruction of llama.cpp's", ratio))
    return counts


def picture_counts(plugin: Path, directory: Path) -> list[Count]:
    """Whole pictures of 512 x 512 pixels, from towers of one layer, of two, and with one tap."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from vision_shapes import (
        CONFIGS,
        SIDE,
        Cut,
        architectures,
        attention_products,
        linear_products,
        write_seeing,
    )

    counts = []
    for shape in CONFIGS:
        _, tower = architectures(shape)
        models = {}
        for cut in (Cut(1), Cut(2), Cut(1, taps=True))[: 3 if tower.taps else 2]:
            models[cut] = directory / f"{shape}-{len(models)}.awq.gguf"
            write_seeing(shape, models[cut], cut)
        for table in ("neon", "neon_dotprod"):
            one, two, *tapped = (
                count(plugin, CPUS[table], "picture_loop", model, SIDE, 1)
                - count(plugin, CPUS[table], "picture_loop", model, SIDE, 0)
                for model in models.values()
            )
            whole = one + (tower.layers - 1) * (two - one)
            whole += len(tower.taps) * (sum(tapped) - one) if tapped else 0
            work = linear_products(tower) + attention_products(tower)
            name = f"a picture of {shape}"
            counts.append(Count(table, name, "picture, in millions", whole / 1e6))
            counts.append(Count(table, name, "product", whole / work))
    return counts


def innermost_loop(objdump: str, path: Path, function: str) -> list[str]:
    """The instructions of the loop in ``function`` that multiplies most."""
    known = "--mattr=+v8a,+neon,+dotprod,+i8mm"
    text = run(objdump, "-d", "--no-show-raw-insn", known, str(path))
    loops: list[list[str]] = []
    lines: list[tuple[int, str]] = []
    starts: list[int] = []  # of the loops in this function; one around another is not innermost
    inside = False
    for line in text.splitlines():
        heading = re.match(r"^[0-9a-f]+ <(.+)>:$", line)
        if heading:
            inside = re.search(function, heading.group(1)) is not None
            lines, starts = [], []
        instruction = re.match(r"^\s*([0-9a-f]+):\s+(.*?)\s*(//.*)?$", line)
        if not inside or instruction is None:
            continue
        lines.append((int(instruction.group(1), 16), instruction.group(2)))
        branch = re.match(r"^(b\.\w+|cbn?z|tbn?z)\s.*?(?:0x)?([0-9a-f]+)(?: <.*)?$", lines[-1][1])
        if branch:
            target = int(branch.group(2), 16)
            body = [text for at, text in lines if at >= target]
            backward = lines[0][0] <= target <= lines[-1][0]
            if backward and not any(at >= target for at in starts):
                starts.append(target)
                loops.append(body)
    return max(loops, key=products, default=[])


def products(instructions: list[str]) -> int:
    """Multiply-adds in a list of instructions."""
    return sum(PRODUCTS.get(text.split()[0], 0) for text in instructions)


def modelled_cycles(mca: str, model: str, instructions: list[str]) -> float:
    """Cycles that llvm-mca gives one round of a loop, in the steady state."""
    rounds = 1000
    body = [text for text in instructions if not re.match(r"(b\.|cbn?z|tbn?z|nop)", text)]
    with tempfile.NamedTemporaryFile("w", suffix=".s") as source:
        source.write("\n".join(body) + "\n")
        source.flush()
        options = (f"-mcpu={model}", "-mattr=+dotprod,+i8mm", f"-iterations={rounds}")
        output = run(mca, "-mtriple=aarch64", *options, source.name)
    found = re.search(r"Total Cycles:\s+(\d+)", output)
    if found is None:
        raise Problem(f"llvm-mca reported nothing:\n{output}")
    return int(found.group(1)) / rounds


def loop_cycles(objdump: str, mca: str) -> list[Cycles]:
    """Modelled cycles for the innermost loops of the matrix products."""
    tool = re.search(r"version (\S+)", run(mca, "--version"))
    version = tool.group(1) if tool else "unknown"
    if int(version.split(".")[0]) < 19:
        print(
            f"llvm-mca {version} has no model of the Neoverse N1; install llvm-19 for neon_dotprod"
        )
    rows = []
    for table, model in MODELS.items():
        if table != "neon" and int(version.split(".")[0]) < 19:
            continue
        for operation, function in (("gemv", f"gemv_rows.*Lm{GROUP}E"), ("gemm", "multiply_")):
            for bits in (4, 3, 2, 8):
                name = f"{operation}_s8d_u{bits}g"
                path = OBJECTS / operation / f"{name}_{table}.cpp.o"
                body = innermost_loop(objdump, path, function)
                if not body:
                    raise Problem(f"{path} holds no loop that multiplies")
                cycles = modelled_cycles(mca, model, body) / products(body)
                rows.append(Cycles(table, name, model, version, len(body), cycles))
    return rows


def main() -> int:
    """Prints every count, and cycles if the tools are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--token", action="store_true", help="count whole tokens too (200 MB)")
    parser.add_argument(
        "--picture", action="store_true", help="count whole encodings of pictures too (1 GB)"
    )
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="SOURCES", help="count llama.cpp's tokens too (600 MB)"
    )
    parser.add_argument("--llvm-mca", metavar="PROGRAM", help="llvm-mca to ask for cycles")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    arguments = parser.parse_args()
    names = [f"{{}}-{version}" for version in range(22, 13, -1)] + ["{}"]
    counts: list[Count] = []
    cycles: list[Cycles] = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            plugin = build(Path(directory))
            peer = build_peer(arguments.llama_cpp) if arguments.llama_cpp else None
            counts += kernel_counts(plugin)
            if arguments.token or peer:
                counts += token_counts(plugin, Path(directory), peer)
            if arguments.picture:
                counts += picture_counts(plugin, Path(directory))
        print("instructions, counted (not a speed)")
        for one in counts:
            print(f"  {one.table:13} {one.operation:44} {one.instructions:8.4f} per {one.unit}")
        try:
            mca = arguments.llvm_mca or require(*(name.format("llvm-mca") for name in names))
            objdump = require(*(name.format("llvm-objdump") for name in names))
        except Problem as problem:
            print(f"no cycles: {problem}")
        else:
            cycles = loop_cycles(objdump, mca)
            print("cycles of the innermost loop by a model of the core (not a speed)")
            for row in cycles:
                print(
                    f"  {row.table:13} {row.operation:16} {row.cycles_per_product:8.4f} per product"
                    f"   {row.model}, llvm-mca {row.tool}, {row.loop_instructions} instructions"
                )
    except Problem as problem:
        print(f"count: {problem}", file=sys.stderr)
        return 1
    if arguments.json:
        rows = {"counts": [asdict(c) for c in counts], "cycles": [asdict(c) for c in cycles]}
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
