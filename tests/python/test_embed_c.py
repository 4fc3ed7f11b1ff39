"""examples/embed_c: C and C++ programs with the Arm library, run as a Raspberry Pi 4.

Compiled by the commands of the folder's README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from boards import ROOT, STORIES, arm_root, arm_wheel

from awq_edge import GenerationConfig, Model

FOLDER = ROOT / "examples/embed_c"
PROMPT = "Once upon a time"


def _expected(prompt: str, count: int) -> str:
    with Model.open(STORIES) as model:
        tokens = model.tokenize(prompt)
        config = GenerationConfig(max_tokens=count, temperature=0)
        return prompt + "".join(model.generate(tokens, config)) + "\n"


def _ids() -> list[str]:
    with Model.open(STORIES) as model:
        return [str(token) for token in model.tokenize(PROMPT)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as the README unpacks it."""
    folder = tmp_path_factory.mktemp("embed") / "wheel"
    with zipfile.ZipFile(arm_wheel()) as archive:
        archive.extractall(folder)
    return folder


def _zig(language: str, *arguments: object) -> None:
    command = [sys.executable, "-m", "ziglang", language, "-target", "aarch64-linux-gnu.2.31"]
    command += ["-mcpu=cortex_a72-aes-sha2", "-O2", "-s", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    command = [emulator, "-cpu", "cortex-a72", "-L", str(arm_root()), str(program)]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


def _build(language: str, wheel: Path) -> Path:
    library = wheel / "awq_edge/libawq_edge.so"
    program = wheel / "awq_edge" / f"generate_{language}"
    include, rpath = f"-I{wheel}/awq_edge/include", "-Wl,-rpath,$ORIGIN"
    sources = FOLDER / "generate.c", FOLDER / "vocabulary.c"
    if language == "c":
        _zig("cc", "-std=c99", include, *sources, library, rpath, "-o", program)
    else:
        words = wheel / "vocabulary.o"
        _zig("cc", "-std=c99", "-c", FOLDER / "vocabulary.c", "-o", words)
        main = FOLDER / "generate.cpp"
        _zig("c++", "-std=c++17", include, main, words, library, rpath, "-o", program)
    return program


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_program_generates_what_python_does(language: str, wheel: Path) -> None:
    program = _build(language, wheel)
    done = _run(program, STORIES, 40, *_ids())
    assert done.returncode == 0, done.stderr
    # The tokens' own text begins with the blank that the tokenizer puts before a word.
    assert done.stdout.lstrip(" ") == _expected(PROMPT, 40)
    done = _run(program, STORIES, 40)
    assert done.stdout.lstrip(" ") == _expected("", 40).lstrip(" ")

    missing = _run(program, "absent.gguf", 1)
    assert missing.returncode == 1
    assert "absent.gguf" in missing.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_the_program_for_this_machine_under_a_sanitizer(tmp_path: Path) -> None:
    from awq_edge import _native

    library = _native.library_path()
    program = tmp_path / "generate"
    command = ["cc", "-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-Wall", "-Werror"]
    command += [
        f"-I{ROOT}/native/include",
        str(FOLDER / "generate.c"),
        str(FOLDER / "vocabulary.c"),
    ]
    command += [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "asan" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    arguments = [str(program), str(STORIES), "20", *_ids()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip(" ") == _expected(PROMPT, 20)


def test_the_readme_names_the_flags_that_are_tested() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    baseline = (ROOT / "targets/aarch64.cmake").read_text("utf-8")
    target = re.search(r"AWQE_ZIG_TARGET (\S+)\)", baseline)
    cpu = re.search(r"AWQE_ZIG_CPU (\S+)\)", baseline)
    assert target is not None
    assert cpu is not None
    assert f"-target {target.group(1)} -mcpu={cpu.group(1)}" in text
    assert os.access(FOLDER / "generate.c", os.R_OK)
