"""What ``awq-edge ps`` knows of: servers that live, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from awq_edge.running_servers import announced, running_servers

HEALTH = {"status": "ok", "loaded": ["a"], "memory_bytes": 12_000_000, "tokens_per_second": 3.5}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def address() -> Iterator[str]:
    """A server that answers /health and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            content = json.dumps(HEALTH).encode()
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ps(*words: str) -> str:
    command = [sys.executable, "-m", "awq_edge.cli.main", "ps", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_server_is_known_while_it_runs(address: str) -> None:
    assert running_servers() == [] and "No server" in ps()
    with announced(address, ["a", "b"]):
        (server,) = running_servers()
        assert (server.pid, server.address, server.models) == (os.getpid(), address, ("a", "b"))
        shown = ps()
        for words in (address, "b (not loaded)", "12.0 MB", "3.5 tokens/s", "ok"):
            assert words in shown, shown
        assert json.loads(ps("--json"))["servers"][0]["health"] == HEALTH
    assert running_servers() == []


@pytest.mark.parametrize(
    "health",
    [
        {"loaded": 5, "memory_bytes": float("inf"), "tokens_per_second": float("nan")},
        {"loaded": "a", "memory_bytes": 10**300, "tokens_per_second": -(10**300)},
        {"loaded": [["a"]], "memory_bytes": [], "tokens_per_second": {}, "status": [1]},
    ],
)
def test_a_server_that_says_strange_things_is_listed(
    health: dict[str, object], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in list(HEALTH):
        monkeypatch.delitem(HEALTH, key)
    for key, value in health.items():
        monkeypatch.setitem(HEALTH, key, value)
    with announced(address, ["a"]):
        assert address in ps()


def test_one_that_was_killed_is_forgotten(cache: Path) -> None:
    program = (
        "import os, signal\nfrom awq_edge.running_servers import announced\n"
        "with announced('http://127.0.0.1:1', ['a']): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert len(list((cache / "servers").iterdir())) == 1
    assert running_servers() == []
    assert list((cache / "servers").iterdir()) == []


def test_the_number_of_an_ended_process_may_be_another_s(cache: Path) -> None:
    with announced("http://127.0.0.1:1", ["a"]):
        (path,) = (cache / "servers").iterdir()
        table = json.loads(path.read_text())
        path.write_text(json.dumps({**table, "process_started": "1 other"}))
        assert running_servers() == []


NO_TABLES = (b"", b"{}", b"[]", b"\xff", b'{"pid": "x"}', b'{"pid": 1e999}', b"[" * 10_000)


@pytest.mark.parametrize("content", NO_TABLES)
def test_files_that_are_none(content: bytes, cache: Path) -> None:
    with announced("http://127.0.0.1:1", ["a"]):
        (cache / "servers/0.json").write_bytes(content)
        assert len(running_servers()) == 1
    assert list((cache / "servers").iterdir()) == []


def test_a_folder_of_others_is_not_read(cache: Path) -> None:
    with announced("http://127.0.0.1:1", ["a"]):
        (cache / "servers").chmod(0o777)
        assert running_servers() == []
        (cache / "servers").chmod(0o700)


def test_without_a_cache_a_server_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_EDGE_CACHE", "/proc/nowhere")
    with announced("http://127.0.0.1:1", ["a"]):
        assert running_servers() == []
