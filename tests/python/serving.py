"""A server in a process of its own, for the tests of ``awq-edge serve``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# As in conftest.py.
_PATIENT = "from awq_edge import chat; chat._WALL_SECONDS = 60.0"
# What was said in a test is not kept in the cache of whoever runs it.
_CACHE = tempfile.TemporaryDirectory()


class Server:
    """``awq-edge serve`` on a free port; ``prelude`` is Python that it runs first."""

    def __init__(self, *arguments: object, prelude: str = "") -> None:
        program = f"{_PATIENT}\n{prelude}\nfrom awq_edge.cli.main import main\nmain()"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", program, "serve", "--port", "0"),
                *("--threads", "1", "--prefill-threads", "2", "--ignore-memory"),
                *map(str, arguments),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env={"AWQ_EDGE_CACHE": _CACHE.name, **os.environ, "TERM": "dumb", "COLUMNS": "200"},
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            self.lines.append(raw.decode())
            found = re.search(r" at (http://\S+?),", self.lines[-1])
            if found:
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))
        self.collector = threading.Thread(target=self._collect, daemon=True)
        self.collector.start()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            self.lines.append(raw.decode())

    @property
    def log(self) -> str:
        """What it has said: whole once it has stopped, before that what was read so far."""
        return "".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed body (or text) and headers of one request."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path,
            data,
            {"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content, status, found = response.read(), response.status, response.headers
        except urllib.error.HTTPError as error:
            content, status, found = error.read(), error.code, error.headers
        text = content.decode()
        if found.get_content_type() == "application/json":
            return status, json.loads(text), dict(found)
        return status, text, dict(found)

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        text = self.ask("/metrics")[1]
        found = re.search(rf"^awq_edge_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def stop(self) -> int:
        """Ends it as a person would; gives the exit status. No server may have failed inside."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(60)
        self.collector.join(60)
        assert "Traceback" not in self.log, self.log[-3000:]
        return status

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.process.kill()
        self.process.wait(60)


def sent_events(url: str, body: object) -> list[str]:
    """The ``data`` lines of a stream, as they stand."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers.get_content_type() == "text/event-stream"
        lines = response.read().decode().split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line]
