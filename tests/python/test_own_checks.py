"""The programs of tests/checks need positive evidence: what they cannot read is no success."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from programs import program

ROOT = Path(__file__).resolve().parents[2]

check_kernel_objects = program("tests/checks/check_kernel_objects.py")


def disassembler(folder: Path, file_format: str, instruction: str) -> str:
    """The prefix of tools that say this of any object; nm names no symbols."""
    folder.mkdir(parents=True)
    said = f"printf '\\n%s:     file format {file_format}\\n\\n' \"$3\""
    code = "printf '0000 <kernel>:\\n   0:\\t%s\\n' " + shlex.quote(instruction)
    for name, script in (("nm", ""), ("objdump", f"{said}\n{code}")):
        tool = folder / f"made-{name}"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    return f"{folder}/made-"


@pytest.mark.parametrize("folder", ["short", "deep/" * 60, "aarch64", "x86"])
@pytest.mark.parametrize(
    ("file_format", "name", "instruction", "problem"),
    [
        ("elf64-littleaarch64", "gemv_s8d_neon", "sdot v0.4s, v1.16b, v2.16b", "dot product"),
        ("elf64-littleaarch64", "session", "ldaddal x0, x1, [x2]", "LSE atomic"),
        ("elf64-x86-64", "session", "vaddps %ymm0,%ymm1,%ymm2", "AVX"),
        ("elf64-x86-64", "gemv_s8d_avx2", "vpdpbusd %ymm0,%ymm1,%ymm2", "VNNI"),
    ],
)
def test_an_object_is_judged_by_its_machine_wherever_it_lies(
    tmp_path: Path, folder: str, file_format: str, name: str, instruction: str, problem: str
) -> None:
    tools = disassembler(tmp_path / "tools", file_format, instruction)
    path = tmp_path / folder / "kernels" / f"{name}.cpp.o"
    assert [problem in said for said in check_kernel_objects.audit(path, tools)] == [True]


@pytest.mark.parametrize("file_format", ["elf64-littleriscv", "elf32-i386", ""])
def test_an_object_of_no_known_machine_is_not_passed(tmp_path: Path, file_format: str) -> None:
    tools = disassembler(tmp_path / "tools", file_format, "vaddps %ymm0,%ymm1,%ymm2")
    with pytest.raises(ValueError, match="names no machine"):
        check_kernel_objects.audit(tmp_path / "session.cpp.o", tools)


def test_an_audit_of_nothing_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/checks/check_kernel_objects.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no kernel objects" in done.stderr


def test_documents_that_git_does_not_list_are_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_docs = program("tests/checks/check_docs.py")
    assert check_docs.missing_paths() == []
    listed = subprocess.CompletedProcess([], 0, "docs/gone.md\n", "")
    monkeypatch.setattr(check_docs.subprocess, "run", lambda *_, **__: listed)
    assert [problem.split()[-1] for problem in check_docs.missing_paths()] == ["read", "there"]
