"""The Arm library without an Arm board: built by the rpi4b preset, run by qemu as several CPUs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from boards import copy_arm_objects
from programs import program

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/rpi4b"
SYSROOT = Path("/usr/aarch64-linux-gnu")
MODEL = ROOT / "tests/data/tiny.awq.gguf"

# What each of the emulator's CPUs must run, best first. The A72 is the Raspberry Pi 4's, the A76
# the Pi 5's and stands in for the Orin's A78AE; `max` has everything the emulator knows.
TABLES = {
    "cortex-a53": ["neon", "reference"],
    "cortex-a72": ["neon", "reference"],
    "cortex-a76": ["neon_dotprod", "neon", "reference"],
    "max": ["neon_i8mm", "neon_dotprod", "neon", "reference"],
}
KERNEL_TESTS = [path.stem for path in sorted((ROOT / "tests/native/kernels").glob("*_test.cpp"))]
# What is run below; the library is audited.
TARGETS = [
    *("awq_edge", *KERNEL_TESTS, "embed_in_c", "forms_test", "fuzz_evaluate_files"),
    *("fuzz_kernels_loop", "golden_test", "print_kernels", "vision_test"),
]

check_arm_library = program("tests/checks/check_arm_library.py")
arm_counts = program("benchmarks/arm/count.py")


@pytest.fixture(scope="module")
def emulator() -> str:
    found = shutil.which("qemu-aarch64")
    if found is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    if not (SYSROOT / "lib/ld-linux-aarch64.so.1").exists():
        pytest.skip(f"{SYSROOT} holds no C library (Debian: libc6-dev-arm64-cross)")
    return found


@pytest.fixture(scope="module")
def build() -> Path:
    """The build directory of the rpi4b preset, up to date."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed (pip install ziglang==0.17.1)")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=_environment()["PATH"]) is None:
            pytest.skip(f"{tool} is not installed")
    if not (BUILD / ".ninja_log").exists():
        copy_arm_objects(BUILD)
    options = [f"-DAWQE_ZIG_PYTHON={sys.executable}", "-DAWQE_WARNINGS_AS_ERRORS=OFF"]
    for command in (
        ["cmake", "--preset", "rpi4b", *options],
        ["cmake", "--build", "--preset", "rpi4b", "-j", "2", "--target", *TARGETS],
    ):
        # A first build compiles zig's C++ library too, which takes minutes.
        result = subprocess.run(
            command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=1800
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "[-W" not in result.stdout + result.stderr  # no compiler warned
    return BUILD


def _environment() -> dict[str, str]:
    """The caller's, with the tools that are installed beside this Python."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}


def _run(
    emulator: str, cpu: str, program: Path, *arguments: object, kernels: str | None = None
) -> subprocess.CompletedProcess[str]:
    forced = {} if kernels is None else {"AWQ_EDGE_KERNELS": kernels}
    environment = {k: v for k, v in os.environ.items() if k != "AWQ_EDGE_KERNELS"} | forced
    return subprocess.run(
        [emulator, "-cpu", cpu, "-L", str(SYSROOT), str(program), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("cpu", TABLES)
def test_a_cpu_gets_exactly_the_tables_it_can_run(emulator: str, build: Path, cpu: str) -> None:
    result = _run(emulator, cpu, build / "tests/native/print_kernels")
    assert result.stdout.split() == TABLES[cpu], result.stderr


# The a53 has the a72's tables.
@pytest.mark.parametrize("name", KERNEL_TESTS)
@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76", "max"])
def test_every_kernel_gives_the_reference_bits(
    emulator: str, build: Path, cpu: str, name: str
) -> None:
    result = _run(emulator, cpu, build / "tests/native" / name)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76", "max"])
def test_random_cases_give_the_reference_bits(emulator: str, build: Path, cpu: str) -> None:
    result = _run(emulator, cpu, build / "tests/native/fuzz_kernels_loop", 100)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76", "max"])
def test_damaged_files_give_the_reference_logits(emulator: str, build: Path, cpu: str) -> None:
    findings = ROOT / "tests/data/fuzz/evaluate"
    result = _run(emulator, cpu, build / "tests/native/fuzz_evaluate_files", findings, 10)
    assert result.returncode == 0, result.stdout + result.stderr


# Emulated floats cost a hundred times what real ones do: thread counts and ways to cut the prompt
# are left to the two CPUs that run all of the kernels between them.
@pytest.mark.parametrize(
    ("cpu", "case"),
    [("cortex-a72", ""), ("cortex-a76", "every_table"), ("max", "")],
)
def test_a_whole_model_gives_the_golden_logits(
    emulator: str, build: Path, cpu: str, case: str
) -> None:
    result = _run(emulator, cpu, build / "tests/native/golden_test", case)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76", "max"])
@pytest.mark.parametrize("of", ["forms_test", "vision_test"])  # of decoders; of vision parts
def test_every_form_gives_its_golden_hashes(emulator: str, build: Path, of: str, cpu: str) -> None:
    result = _run(emulator, cpu, build / "tests/native" / of, "every_table")
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_that_the_cpu_lacks_are_refused_with_a_sentence(emulator: str, build: Path) -> None:
    program = build / "tests/native/embed_in_c"
    allowed = _run(emulator, "cortex-a72", program, MODEL, 3, 1, 2, kernels="neon")
    assert allowed.returncode == 0, allowed.stderr
    assert len(allowed.stdout.split()) == 3

    refused = _run(emulator, "cortex-a72", program, MODEL, 3, 1, 2, kernels="neon_dotprod")
    assert refused.returncode == 1, refused  # not killed by an illegal instruction
    assert "cannot run the kernels 'neon_dotprod'" in refused.stderr
    assert "neon, reference" in refused.stderr

    possible = _run(emulator, "cortex-a76", program, MODEL, 3, 1, 2, kernels="neon_dotprod")
    assert possible.stdout == allowed.stdout


def test_the_library_loads_and_runs_on_every_arm_board(build: Path) -> None:
    assert _problems_of(build) == []


def _problems_of(build: Path) -> list[str]:
    try:
        found: list[str] = check_arm_library.problems(build)
    except check_arm_library.MissingTool as error:
        pytest.skip(str(error))
    return found


# What each rule says about the same library when the rule is tightened beyond what it meets.
@pytest.mark.parametrize(
    ("rule", "limit", "complaint"),
    [
        ("ALLOWED_LIBRARIES", {"libm.so.6"}, "needs libc.so.6"),
        ("NEWEST_GLIBC", (2, 16), "needs glibc 2.17"),
        ("PAGE_SIZE", 0x20000, "aligned to 0x10000"),
        ("kernel_functions", lambda build, *isas: {"gemv"}, "instructions beyond +v8a"),
        (
            "LEVELS",
            {"neon_dotprod": "+v8a,+neon,+crc,+dotprod", "neon_i8mm": "+v8a,+neon,+crc"},
            "no kernel table asks for",
        ),
    ],
)
def test_the_library_check_can_fail(
    build: Path, monkeypatch: pytest.MonkeyPatch, rule: str, limit: object, complaint: str
) -> None:
    monkeypatch.setattr(check_arm_library, rule, limit)
    assert any(complaint in problem for problem in _problems_of(build))


def test_kernels_stay_within_their_instruction_counts(
    emulator: str, build: Path, tmp_path: Path
) -> None:
    try:
        plugin = arm_counts.build(tmp_path)
    except arm_counts.Problem as problem:
        pytest.skip(str(problem))

    def per_product(table: str, operation: str, *tokens: int) -> float:
        rows, columns = 128, 2048
        instructions = arm_counts.count_kernel(
            plugin, table, operation, 4, 128, rows, columns, *tokens
        )
        return float(instructions) / rows / columns / (tokens[0] if tokens else 1)

    # Just above what they are. The lower limits are what the multiplications alone take: less
    # would mean that something was not counted.
    assert 1 / 8 < per_product("neon", "gemv") <= 0.28
    assert 1 / 16 < per_product("neon_dotprod", "gemv") <= 0.20
    tokens = 512
    with_sdot = per_product("neon_dotprod", "gemm", tokens)
    assert 1 / 16 < with_sdot <= 0.12
    assert 1 / 32 < per_product("neon_i8mm", "gemm", tokens) <= 0.6 * with_sdot
