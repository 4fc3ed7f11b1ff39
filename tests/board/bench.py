"""What every case on a virtual board needs: a board, a deploy, and what must be true after it.

Owns the comparison with this machine: text, logits, every file. Refuses to know any case.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import images
from images import ROOT, WORK
from machine import BoardFailure, Kind, Machine, running

STORIES = ROOT / "tests/data/stories260k.awq.gguf"
MODEL = STORIES.name
PROMPT = "Once upon a time"
# The workstation's, out of this checkout.
AWQ_EDGE = (sys.executable, "-m", "awq_edge.cli.main")
EDGE = "~/.local/bin/awq-edge"
PREFIX = "~/.local/share/awq-edge"
# What the board's own Python prints of a model: a hash over all logits of a prompt.
REPORT = """
import hashlib, sys
from awq_edge import Model
with Model.open(sys.argv[1]) as model:
    logits = model.logits(model.tokenize(sys.argv[2]) * 8)
    print(hashlib.sha256(logits.tobytes()).hexdigest())
"""
# Files of complete releases that are empty and should not be; the list says what should be.
EMPTIED = """
import os, sys
for release in os.scandir(sys.argv[1] + "/releases"):
    try: lines = open(release.path + "/files.txt").read().splitlines()
    except OSError: print("no list in", release.name); continue
    for line in lines:
        words = line.split(" ", 2)
        if len(words[0]) == 64 and words[1] != "0":
            if os.path.getsize(release.path + "/" + words[2]) == 0: print(words[2])
"""


@dataclass
class Deploy:
    """One run of the command.

    Attributes:
        status: Its exit status; None while it runs.
        lines: What it printed, and when, in seconds.
        written: Bytes of the log of the disk's writes by then, if there is one.
    """

    status: int | None = None
    lines: list[tuple[float, str]] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that it printed."""
        return "\n".join(line for _, line in self.lines)


@dataclass
class Bench:
    """What all cases share."""

    wheel: Path
    cuts: int
    boots: int
    seed: int
    kind: Kind
    base: Path
    deployed: Path

    def board(
        self, image: Path | None = None, **changes: object
    ) -> AbstractContextManager[Machine]:
        """A running board with a copy of an image."""
        kind = replace(self.kind, **changes)  # type: ignore[arg-type]  # fields of Kind
        copy = WORK / f"case-{os.getpid()}.img"
        return running(kind, image or self.base, copy, images.user_key())


def deploy(
    bench: Bench,
    machine: Machine,
    *options: str,
    model: Path = STORIES,
    seen: Callable[[str], None] | None = None,
) -> Deploy:
    """Runs 'awq-edge deploy' against a board.

    Args:
        bench: The wheel.
        machine: The board.
        *options: Further ones.
        model: What to bring.
        seen: Called with each line that the command prints.
    """
    command = [*AWQ_EDGE, "deploy", str(model), machine.host]
    command += ["--ssh", machine.ssh, "--wheel", str(bench.wheel), *options]
    if "--target" not in options:
        command += ["--target", "rpi4b"]
    result = Deploy()
    log = Path(f"{machine.image}.writes")
    begin = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            result.lines.append((time.monotonic() - begin, line.rstrip("\n")))
            result.written.append(log.stat().st_size if log.exists() else 0)
            print(f"    {result.lines[-1][0]:6.1f}  {line}", end="", flush=True)
            if seen is not None:
                seen(line)
    result.status = process.returncode
    return result


def must_deploy(bench: Bench, machine: Machine, *options: str, **more: object) -> Deploy:
    """A run that ends well."""
    result = deploy(bench, machine, *options, **more)  # type: ignore[arg-type]  # as deploy has them
    if result.status != 0:
        raise BoardFailure(f"deploy ended with {result.status}: {result.lines[-1][1]}")
    return result


def must_refuse(result: Deploy, *words: str) -> None:
    """A run that ends with one sentence which has these words."""
    said = [line for _, line in result.lines if line.startswith("awq-edge: ")]
    if result.status != 1 or len(said) != 1 or not all(word in said[0] for word in words):
        raise BoardFailure(f"expected a sentence with {words}, found {result.status}: {said}")


def must_run(bench: Bench, machine: Machine, model: Path = STORIES) -> None:
    """The installed command computes what the workstation does, and finds its files whole."""
    must_compute(machine, model, f"{PREFIX}/models/{model.name}")
    must_be_whole(machine)


def must_compute(machine: Machine, model: Path, place: str) -> None:
    """A model gives the workstation's text and logits.

    Args:
        machine: The board.
        model: The file here.
        place: Where it is on the board, for its shell.
    """
    text, logits = here(model)
    found = machine.must(f"{EDGE} run {place} -p {shlex.quote(PROMPT)} -n 24 --temperature 0 -q")
    if found != text:
        raise BoardFailure(f"the board generates {found!r} and the workstation {text!r}")
    python = f"{PREFIX}/current/bin/python -I -B -c {shlex.quote(REPORT)}"
    if machine.must(f"{python} {place} {shlex.quote(PROMPT)}").strip() != logits:
        raise BoardFailure("the board's logits are not those of the workstation")


def must_be_whole(machine: Machine) -> None:
    """No file is empty that should not be, and all contents are as they were installed."""
    empty = machine.must(f"python3 -c {shlex.quote(EMPTIED)} {PREFIX}")
    if empty:
        raise BoardFailure(
            f"{len(empty.splitlines())} files are empty: {empty.splitlines()[0]} ..."
        )
    machine.must(f"{EDGE} selftest")


@functools.cache
def here(model: Path) -> tuple[str, str]:
    """Text and logits on this machine."""
    run = [*AWQ_EDGE, "run", str(model), "-p", PROMPT, "-n", "24", "--temperature", "0", "-q"]
    report = [sys.executable, "-c", REPORT, str(model), PROMPT]
    text, logits = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for command in (run, report)
    )
    return text, logits.strip()


def chat_model() -> Path:
    """The chat model of the repository, rounded to nearest: what is compared, quality is not."""
    file = WORK / "novels-chat.awq.gguf"
    if not file.exists():
        partial = file.with_name("partial.awq.gguf")
        command = [*AWQ_EDGE, "convert", "examples/novels-chat", "--method", "rtn", "-q", "--force"]
        subprocess.run([*command, "-o", str(partial)], cwd=ROOT, check=True, capture_output=True)
        partial.rename(file)
    return file


def deployed(bench: Bench) -> Path:
    """The image of a board with a release, made by the first case."""
    if not bench.deployed.exists():
        raise BoardFailure("the case fresh-and-cut has made no image to start from")
    return bench.deployed
