"""Many clients at once against ``awq-edge serve``: is each text what it is alone, and how fast.

Starts a server, lets clients stream chats from it, some of which leave in the middle and some of
which read slowly, and compares every whole text with ``Model.generate`` by ``==``. Prints requests,
tokens per second of all together, the time to the first token, and the server's memory after a
tenth of the requests and in the end. With ``--minutes`` the clients go on for at least so long.

    python benchmarks/serve_load.py chat.awq.gguf --clients 50 --requests 10000 --minutes 10
    python benchmarks/serve_load.py chat.awq.gguf --requests 500 -- --lookup --cache-size 0
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from awq_edge import Model

SAYINGS = (
    "Good morning! What is your name?",
    "Pray tell me about the weather of this season, and about the house.",
    "How do you do?",
    "I am going to the sea with my sister, and we shall not be back before night. " * 6,
    "Will you be so kind as to bring the carriage to the door?",
)
LEAVING = 0.1  # of all requests, in the middle of a text
SLOW = 0.05  # of all requests, whose reader waits at each piece
SLOW_SECONDS = 0.05


class Load:
    """What clients share: the plan, the figures and what went wrong."""

    def __init__(
        self, address: tuple[str, int], requests: int, max_tokens: int, until: float = 0.0
    ) -> None:
        """Has asked nothing yet; of ``time.monotonic()``, goes on until a time at least."""
        self.address, self.max_tokens = address, max_tokens
        self._requests, self._until = requests, until
        self._plan = itertools.count()
        self.memory: int | None = None  # after a tenth of the requests
        self._lock = threading.Lock()
        self.texts: dict[int, str] = {}
        self.first_token_seconds: list[float] = []
        self.tokens = self.left = self.refused = 0
        self.faults: list[str] = []

    def body(self, number: int) -> dict[str, object]:
        """A request: one of few, so that many can be compared with one text."""
        return {
            "messages": [{"role": "user", "content": SAYINGS[number % len(SAYINGS)]}],
            "seed": number % 40,
            "temperature": 0.9,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def client(self, seed: int) -> None:
        """Asks one request after the other."""
        random_ = random.Random(seed)
        while True:
            with self._lock:
                number = next(self._plan)
            if number >= self._requests and time.monotonic() >= self._until:
                return
            if number == self._requests // 10:
                self.memory = int(str(_health(self.address)["memory_bytes"]))
            try:
                kind = random_.random()
                self._ask(number, leaves=kind < LEAVING, slow=kind > 1 - SLOW)
            except OSError as error:
                self.faults.append(f"request {number}: {error}")

    def _ask(self, number: int, *, leaves: bool, slow: bool) -> None:
        while True:
            connection = http.client.HTTPConnection(*self.address, timeout=600)
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(self.body(number)))
            response = connection.getresponse()
            if response.status != 429:
                break
            self.refused += 1
            connection.close()
            time.sleep(float(response.headers["Retry-After"]))
        text, first = "", None
        for event in _events(response):
            if slow:
                time.sleep(SLOW_SECONDS)
            choices = event["choices"]
            if choices and choices[0]["delta"].get("content"):
                first = first or time.perf_counter() - began
                text += choices[0]["delta"]["content"]
                if leaves:
                    connection.close()
                    self.left += 1
                    return
            if event.get("usage"):
                with self._lock:
                    self.tokens += event["usage"]["completion_tokens"]
        with self._lock:
            self.texts[number] = text
            if first is not None:
                self.first_token_seconds.append(first)
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, object]]:
    for line in response:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            return
        if data and not data.startswith(b":"):
            event = json.loads(data)
            if "error" in event:
                raise OSError(event["error"]["message"])
            yield event


def _health(address: tuple[str, int]) -> dict[str, object]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", "/health")
    return json.loads(connection.getresponse().read())


def _started(arguments: list[str]) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    command = [sys.executable, "-m", "awq_edge.cli.main", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r" at http://([\d.]+):(\d+),", line)
        if found:
            return process, (found[1], int(found[2]))
    raise SystemExit("the server did not start")


def main() -> int:
    """Runs the load; fails if a text is not what it is alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=0.0)
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    asked = parser.parse_args(given[:end])  # what follows -- is the server's
    options = [str(asked.file), "--parallel", str(asked.parallel), *given[end + 1 :]]
    process, address = _started(options)
    try:
        until = time.monotonic() + 60 * asked.minutes
        load = Load(address, asked.requests, asked.max_tokens, until)
        began = time.perf_counter()
        clients = [threading.Thread(target=load.client, args=[i]) for i in range(asked.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.perf_counter() - began
        after = _health(address)
    finally:
        process.terminate()
        process.wait(60)
    alone: dict[tuple[int, int], str] = {}
    different = 0
    with Model.open(asked.file) as model:
        for number, text in load.texts.items():
            key = (number % len(SAYINGS), number % 40)
            if key not in alone:
                messages = [{"role": "user", "content": SAYINGS[key[0]]}]
                alone[key] = model.chat(
                    messages, seed=key[1], temperature=0.9, max_tokens=asked.max_tokens
                ).text()
            different += text != alone[key]
    first = sorted(load.first_token_seconds)
    print(f"{len(load.texts)} texts, {load.left} left, {load.refused} times 429, {seconds:.1f} s")
    print(f"{load.tokens / seconds:.1f} tokens/s together")
    print(f"first token: median {statistics.median(first):.3f} s, last {first[-1]:.3f} s")
    print(f"memory of its own: {load.memory} bytes, then {after['memory_bytes']}")
    print(f"live in the end: {after['live']}")
    print(f"{different} texts differ from those alone; {len(load.faults)} faults")
    for fault in load.faults[:5]:
        print(fault)
    return 1 if different or load.faults else 0


if __name__ == "__main__":
    sys.exit(main())
