"""Supervises generated code from outside, and says whether it passed.

Owns the processes and the verdict. Standard input holds the settings and the code; the tests come
on a descriptor of their own, which the process of the code never has. Code and tests run in two
processes that cannot touch each other: the code answers calls, the tests judge what it answers, and
nothing but the supervisor can write to the standard output that is read. Ends with NOT_CONFINED if
the network cannot be cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from awq_edge.accuracy.confined import boundaries, calls, census

_SECONDS_BETWEEN_COUNTS = 0.01


def main() -> None:
    """Runs what standard input asks for."""
    boundaries.end_with_parent()
    boundaries.protect_from_peers()
    boundaries.adopt_orphans()
    settings = json.loads(sys.stdin.buffer.read())
    tests = settings.pop("tests", None)
    verdict = _judged(settings, tests) if tests is not None else _finished(settings)
    census.kill(os.getpid(), itself=False)
    if verdict is None:
        os._exit(boundaries.NOT_CONFINED)
    os.write(1, json.dumps(verdict).encode("ascii"))
    os._exit(0)


def _finished(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Whether a whole program came to its end."""
    requests, answers = os.pipe(), os.pipe()
    # Waits there, and nowhere else, until the code has ended.
    word = secrets.token_bytes(32)
    os.write(requests[1], word)
    code = _begin(
        settings, (requests[0], answers[1]), lambda ends: _run_program(settings["code"], *ends)
    )
    for end in (*requests, answers[1]):
        os.close(end)
    broken, statuses = _supervise(settings, [code])
    if statuses.get(code) == boundaries.NOT_CONFINED:
        return None
    if broken:
        return _failed(broken)
    try:
        said = calls.receive(answers[0])
    except calls.Ended:
        return _failed(_status_text(statuses[code]))
    if said == {"finished": hashlib.sha256(word).hexdigest()} and statuses[code] == 0:
        return {"passed": True, "reason": ""}
    return _failed(_raised(said))


def _judged(settings: dict[str, Any], tests: int) -> dict[str, Any] | None:
    """Whether tests are content with what code answers."""
    requests, answers, verdict = os.pipe(), os.pipe(), os.pipe()
    # The tests are read by their own process alone: this one's memory is what the code's begins as.
    code = _begin(
        settings, (requests[0], answers[1]), lambda ends: _run_code(settings["code"], *ends)
    )
    judge = _begin(
        settings,
        (tests, requests[1], answers[0], verdict[1]),
        lambda ends: _run_tests(*ends),
    )
    for end in (*requests, *answers, verdict[1], tests):
        os.close(end)
    broken, statuses = _supervise(settings, [judge, code])
    if boundaries.NOT_CONFINED in statuses.values():
        return None
    if broken:
        return _failed(broken)
    try:
        said = calls.receive(verdict[0])
    except calls.Ended:
        return _failed(_status_text(statuses.get(judge, 0)))
    if said == {"passed": True}:
        return {"passed": True, "reason": ""}
    text = _raised(said)
    if said.get("ended") and statuses.get(code):
        text = _status_text(statuses[code])
    return _failed(text)


def _failed(reason: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason}


def _raised(said: Any) -> str:
    return str(said.get("raised", ""))[:400] if isinstance(said, dict) else "an answer is none"


def _status_text(status: int) -> str:
    if status > boundaries.SIGNALLED:
        status = boundaries.SIGNALLED - status
    return f"ended with status {status}"


# ---- outside -------------------------------------------------------------------------------------


def _begin(
    settings: dict[str, Any], ends: tuple[int, ...], body: Callable[[tuple[int, ...]], None]
) -> int:
    """Starts a process that is confined and has no files but ``ends``; gives its number."""
    process = os.fork()
    if process:
        return process
    try:
        boundaries.end_with_parent()
        # Numbers that tell nothing of what they are for.
        moved = tuple(_moved(end) for end in ends)
        boundaries.close_everything_but(set(moved))
        in_namespaces = boundaries.enter_namespaces(
            str(Path.cwd()), settings["folder_bytes"], settings["files"]
        )
        if in_namespaces:
            boundaries.protect_from_peers()
        if not boundaries.give_up_rights() and not in_namespaces:
            os._exit(boundaries.NOT_CONFINED)
        boundaries.limit_process(
            settings["cpu_seconds"], settings["memory_bytes"], settings["file_bytes"]
        )
        body(moved)
    finally:
        os._exit(1)


def _moved(end: int) -> int:
    import fcntl

    return fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 300 + secrets.randbelow(500))


def _supervise(settings: dict[str, Any], processes: list[int]) -> tuple[str, dict[int, int]]:
    """Waits for the first process; ends all that is left then, or once a limit is exceeded.

    Returns:
        Which limit was, and the status of each process that ended by itself.
    """
    started = time.monotonic()
    statuses: dict[int, int] = {}
    broken = ""
    while not broken:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            while pid:
                statuses[pid] = os.waitstatus_to_exitcode(status)
                pid, status = os.waitpid(-1, os.WNOHANG)
        if processes[0] in statuses:
            break
        broken = _exceeded(settings, time.monotonic() - started)
        time.sleep(0 if broken else _SECONDS_BETWEEN_COUNTS)
    if not broken:
        # The other one saw the end of its pipe; give it the moment to say how it ended.
        deadline = time.monotonic() + 0.2
        while len(statuses) < len(processes) and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
    for process in processes:
        if process not in statuses:
            census.kill(process)
    return broken, statuses


def _exceeded(settings: dict[str, Any], seconds: float) -> str:
    """Which limit the processes exceed together; empty if none."""
    use = census.count(os.getpid())
    if use.memory_bytes > settings["memory_bytes"]:
        megabytes = settings["memory_bytes"] / 1e6
        return f"more than {megabytes:.0f} MB of memory in all of its processes"
    if use.processes > settings["processes"]:
        return f"more than {settings['processes']} processes and threads"
    if use.cpu_seconds > settings["cpu_seconds"]:
        return f"more than {settings['cpu_seconds']} s of CPU time"
    if seconds > settings["wall_seconds"]:
        return f"still running after {settings['wall_seconds']:g} s"
    return ""


# ---- inside --------------------------------------------------------------------------------------


def _execute(code: str, namespace: dict[str, Any]) -> str:
    """Runs code to its end; what it raised otherwise."""
    # SystemExit included: code that leaves early has not passed what comes after it.
    try:
        exec(compile(code, "<generated>", "exec"), namespace)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def _run_program(code: str, requests: int, answers: int) -> None:
    boundaries.allow_looking_in()
    raised = _execute(code, {"__name__": "__main__"})
    if raised:
        calls.send(answers, {"raised": raised})
        os._exit(1)
    word = os.read(requests, 64)
    calls.send(answers, {"finished": hashlib.sha256(word).hexdigest()})
    os._exit(0)


def _run_code(code: str, requests: int, answers: int) -> None:
    boundaries.allow_looking_in()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    raised = _execute(code, namespace)
    calls.send(answers, {"raised": raised} if raised else {})
    if not raised:
        calls.serve(requests, answers, namespace)
    os._exit(0)


def _run_tests(tests: int, requests: int, answers: int, verdict: int) -> None:
    with os.fdopen(tests, "rb") as file:
        given, names, text = json.loads(file.read())
    try:
        begun = calls.receive(answers)
        if begun:
            calls.send(verdict, {"raised": str(begun.get("raised", ""))})
            os._exit(0)
        caller = calls.Caller(requests, answers)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(given, "<given>", "exec"), namespace)
        for name in names:
            with suppress(LookupError):
                namespace[name] = caller.named(name)
        exec(compile(text, "<tests>", "exec"), namespace)
    except calls.Ended as ended:
        calls.send(verdict, {"ended": True, "raised": str(ended)})
        os._exit(0)
    except BaseException as error:
        calls.send(verdict, {"raised": f"{type(error).__name__}: {error}"[:300]})
        os._exit(0)
    calls.send(verdict, {"passed": True})
    os._exit(0)
