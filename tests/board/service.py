"""The service on a virtual board: from the start on, over a cut and a kill, within a limit."""

from __future__ import annotations

import json
import shlex
import time

from bench import PREFIX, Bench, must_deploy
from machine import BoardFailure, Machine

PORT = 8080
LIMIT_MB = 400
UNIT = "awq-edge.service"
# Asked on the board itself, for it lets nothing in but ssh. Prints the answer's JSON.
ASK = """
import json, sys, urllib.request
prompt, port = sys.argv[1], sys.argv[2]
body = json.dumps({"model": "stories260k", "prompt": prompt, "max_tokens": 8, "temperature": 0})
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body.encode(),
                                 {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
PROMPT = "Once upon a time there was a little girl who lived with her mother near the wood. " * 4
USER = 'XDG_RUNTIME_DIR="/run/user/$(id -u)" systemctl --user'
# Emulation on busy cores: the program's start alone takes 15 s.
ANSWER_SECONDS = 300.0


def service_at_boot(bench: Bench) -> str:
    """A user's service after a cut, with what it had read, and after kill -9; within its limit."""
    with bench.board() as machine:
        must_deploy(bench, machine, "--service", "user", "--memory-max", f"{LIMIT_MB}MB")
        first = _answer(machine)
        again = _answer(machine)
        if again["choices"] != first["choices"]:
            raise BoardFailure("the same question has another answer")
        machine.cut()
        machine.start()
        begin = time.monotonic()
        after = _answer(machine)
        seconds = time.monotonic() - begin
        if after["choices"] != first["choices"]:
            raise BoardFailure("after the cut the same question has another answer")
        kept = after["usage"]["prompt_tokens_details"]["cached_tokens"]
        if kept < after["usage"]["prompt_tokens"] // 2:
            raise BoardFailure(f"after the cut only {kept} tokens of the prompt were known")
        before = _property(machine, "MainPID")
        machine.must(f"kill -9 {before}")
        if _answer(machine)["choices"] != first["choices"]:
            raise BoardFailure("after kill -9 the same question has another answer")
        if _property(machine, "MainPID") == before:
            raise BoardFailure("it was not killed")
        if _property(machine, "MemoryMax") != str(LIMIT_MB * 1_000_000):
            raise BoardFailure("the unit has no limit")
        used = int(_property(machine, "MemoryCurrent"))
        if used > LIMIT_MB * 1_000_000:
            raise BoardFailure(f"it takes {used} bytes")
        page = machine.must(f"{PREFIX}/current/bin/python -I -c {shlex.quote(PAGE)} {PORT}")
        if "<html" not in page:
            raise BoardFailure("it serves no page")
    return f"answer {seconds:.0f} s after the login, {kept} tokens kept, {used / 1e6:.0f} MB"


PAGE = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=60).read().decode())
"""


def _answer(machine: Machine) -> dict[str, object]:
    """The service's, waited for while it starts."""
    command = f"python3 -c {shlex.quote(ASK)} {shlex.quote(PROMPT)} {PORT}"
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        done = machine.run(command)
        if done.returncode == 0:
            answer: dict[str, object] = json.loads(done.stdout)
            return answer
        if time.monotonic() > end:
            said = machine.run(f"{USER} status {UNIT}; journalctl --user -u {UNIT} -n 5").stdout
            raise BoardFailure(f"the service does not answer: {said[-300:]}")
        time.sleep(2)


def _property(machine: Machine, name: str) -> str:
    return machine.must(f"{USER} show -p {name} --value {UNIT}").strip()
