"""Conversions that are killed at moments of their own time; then the same command once more.

    python tests/python/kill_conversions.py CHECKPOINT --kills 200 [--interrupts 100] [--method awq]
        [--export gguf] [--seed 1] [more of convert's options]

The modules are loaded once, and every command is a child of that. The moment is one of the child's
processor time, so that a busy machine moves none of them: anywhere in a whole run, every third one
in its last fifth, where files are written and renamed. A command is killed one to three times
before it may end. Wrong is: a result other than that of a run which nobody disturbed, a command
that does not go on, anything beside the result, a traceback, a process that lives on.

Prints how many were killed in which state, and every fault.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_PROCESS_TIME = 2  # CLOCK_PROCESS_CPUTIME_ID


@dataclass(frozen=True)
class Run:
    """How one command ended."""

    status: int  # minus the signal that ended it
    said: str
    seconds: float  # of the processor, with its children's
    alive: list[int]  # processes that it has left running


@dataclass
class Kills:
    """What was done to a command, and what came of it."""

    states: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _after(seconds: float, number: int) -> None:
    """The kernel sends this process a signal once it has computed for so long."""
    library = ctypes.CDLL(None, use_errno=True)
    event = struct.pack("Qii48x", 0, number, 0)
    timer = ctypes.c_void_p()
    whole = int(seconds)
    moment = struct.pack("qqqq", 0, 0, whole, max(1, int((seconds - whole) * 1e9)))
    if library.timer_create(_PROCESS_TIME, event, ctypes.byref(timer)) or library.timer_settime(
        timer, 0, moment, None
    ):
        raise OSError(ctypes.get_errno(), "no timer of processor time")


def run(arguments: list[str], said: Path, kill: tuple[float, int] | None = None) -> Run:
    """Runs a command of awq-edge in a child.

    Args:
        arguments: Behind the program's name.
        said: Where its words are kept; replaced.
        kill: Seconds of processor time, and the signal that comes then.
    """
    from awq_edge.cli import main as command_line

    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(file, number)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            sys.argv = ["awq-edge", *arguments]
            if kill is not None:
                _after(*kill)
            command_line.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    alive = _alive(child)
    end = time.monotonic() + 20
    while alive and time.monotonic() < end:  # a worker that has yet to notice
        time.sleep(0.05)
        alive = _alive(child)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return Run(status, said.read_text(errors="replace"), seconds, alive)


def _alive(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def results(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder as empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _moment(random_: random.Random, seconds: float) -> float:
    """Seconds of processor time at which a run of ``seconds`` is ended."""
    share = random_.uniform(0.8, 1.0) if random_.random() < 1 / 3 else random_.uniform(0.0, 1.0)
    return max(share * seconds, 0.001)


def kill_and_go_on(
    arguments: list[str], place: Path, kills: int, interrupts: int, seed: int
) -> Kills:
    """Kills and interrupts a command that many times in all, and runs it to its end in between.

    Args:
        arguments: Behind the program's name; in them ``{out}`` is a folder for all results.
        place: An empty folder.
        kills: Of SIGKILL.
        interrupts: Of SIGINT.
        seed: Of the moments.
    """
    random_ = random.Random(seed)
    said = place / "said"

    def here(folder: Path) -> list[str]:
        return [argument.replace("{out}", str(folder)) for argument in arguments]

    lengths: list[float] = []
    for number in range(2):  # the first one finds cold caches
        sound = place / f"sound{number}"
        sound.mkdir()
        whole = run(here(sound), said)
        if whole.status != 0:
            raise SystemExit(f"the command itself fails: {whole.said[-300:]}")
        lengths.append(whole.seconds)
    expected = results(place / "sound0")
    found = Kills()
    if results(place / "sound1") != expected:
        found.faults.append("two runs that nobody disturbed differ")
    signals = [signal.SIGKILL] * kills + [signal.SIGINT] * interrupts
    random_.shuffle(signals)
    while signals:
        folder = place / "tried"
        folder.mkdir()
        told: list[str] = []
        for _ in range(random_.randint(1, 3)):
            if not signals or results(folder) == expected:
                break
            number = signals.pop()
            moment = _moment(random_, lengths[-1])
            ended = run(here(folder), said, (moment, number))
            made = results(folder)
            if made == expected:
                state = "finished before"
            elif any(path.endswith(".writing") for path in made):
                state = "while writing"
            else:
                state = "with work" if made else "before any work"
            found.states[f"{number.name} {state}"] += 1
            told.append(f"{number.name} after {moment:.3f} s, {state}")
            what = _wrong(ended, number)
            if what:
                found.faults.append("; ".join(told) + f": {what}")
        if results(folder) != expected:
            ended = run(here(folder), said)
            made = results(folder)
            if ended.status != 0:
                found.faults.append("; ".join(told) + f": a dead end: {ended.said[-300:]}")
            elif made.keys() != expected.keys():
                found.faults.append(
                    "; ".join(told) + f": beside it {sorted(made.keys() ^ expected.keys())}"
                )
            elif made != expected:
                found.faults.append("; ".join(told) + ": another result")
        shutil.rmtree(folder)
    return found


def _wrong(ended: Run, number: int) -> str:
    """What is wrong with a command that was ended, or nothing."""
    if "Traceback" in ended.said or "Please report" in ended.said:
        return f"said {ended.said[-300:]}"
    if ended.alive:
        return f"left processes running: {ended.alive}"
    # An interrupt is answered with its own status, or comes too late; or in between, where a
    # command that has nothing to lose ends with what it says then.
    allowed = {0, -number, 130 if number == signal.SIGINT else -number}
    return "" if ended.status in allowed else f"status {ended.status}: {ended.said[-300:]}"


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--interrupts", type=int, default=100)
    parser.add_argument("--method", default="awq")
    parser.add_argument("--export", choices=("gguf", "hf-awq"))
    parser.add_argument("--seed", type=int, default=1)
    asked, more = parser.parse_known_args()
    import torch
    import transformers  # noqa: F401  (what every child would load)

    import awq_edge.conversion
    import awq_edge.interchange.export  # noqa: F401

    # A shell ignores it for what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    command = ["convert", str(asked.checkpoint.resolve()), "-o", "{out}/model.gguf"]
    command += ["--method", asked.method, *more]
    if asked.export:
        command += ["--export", asked.export, "{out}/exported"]
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        found = kill_and_go_on(command, Path(place), asked.kills, asked.interrupts, asked.seed)
    print(f"{sum(found.states.values())} ended: {dict(sorted(found.states.items()))}")
    for fault in found.faults[:20]:
        print(fault)
    print(f"{len(found.faults)} faults")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
