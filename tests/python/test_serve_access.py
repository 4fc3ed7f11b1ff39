"""Who may ask, and what a server makes of requests that nobody should send."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from serving import Server

SAY = {"messages": [{"role": "user", "content": "Good morning!"}], "max_tokens": 2}
POSTED = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/tokenize",
    "/detokenize",
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, stories_path: Path) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# for the house\nopen sesame\n\nsecond-key\n")
    server = Server(
        stories_path,
        *("--api-key-file", keys, "--cors-origins", "https://ours.example"),
        *("--host", "0.0.0.0", "--allowed-hosts", "board.example"),
    )
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    yield server
    server.stop()


def test_a_key_is_asked_for(guarded: Server) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic open sesame"},
        {"Authorization": "Bearer "},
        {"x-api-key": "open sesam"},
        {"x-api-key": "# for the house"},
    ):
        status, body, found = guarded.ask("/v1/models", headers=headers)
        assert status == 401, headers
        assert body["error"]["code"] == "invalid_api_key"
        assert found["WWW-Authenticate"] == "Bearer"
    for headers in (
        {"Authorization": "Bearer open sesame"},
        {"authorization": "bearer second-key"},
        {"x-api-key": "second-key"},
    ):
        assert guarded.ask("/v1/models", headers=headers)[0] == 200, headers
    assert guarded.ask("/health")[0] == 200
    assert guarded.ask("/metrics")[0] == 401
    assert "Anybody" not in guarded.log
    for path in POSTED:
        assert guarded.ask(path, SAY)[0] == 401, path
    assert guarded.ask("/v1/messages", SAY)[1]["type"] == "error"
    assert isinstance(guarded.ask("/api/chat", SAY)[1]["error"], str)


def test_web_pages_of_others_reach_nothing(guarded: Server, server: Server) -> None:
    key = {"x-api-key": "second-key"}
    ours = {**key, "Origin": "https://ours.example"}
    status, _, headers = guarded.ask("/v1/models", headers=ours)
    assert status == 200
    assert headers["access-control-allow-origin"] == "https://ours.example"
    assert "access-control-allow-credentials" not in headers
    assert guarded.ask("/v1/models", headers={**key, "Origin": "https://evil.example"})[0] == 403
    assert guarded.ask("/v1/models", headers={**key, "Origin": "null"})[0] == 403
    # A page that this server itself gave out.
    same = {"Origin": server.url}
    assert server.ask("/v1/models", headers=same)[0] == 200
    assert server.ask("/v1/models", headers={"Origin": "http://localhost:1"})[0] == 403
    for host, status in (
        ("evil.example", 403),
        ("localhost:99", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7", 200),
        ("board.example", 403),
        ("", 403),
    ):
        assert server.ask("/v1/models", headers={"Host": host})[0] == status, host
    assert guarded.ask("/v1/models", headers={**key, "Host": "board.example"})[0] == 200


def test_an_open_door_is_told_of(stories_path: Path) -> None:
    open_server = Server(stories_path, "--host", "0.0.0.0")
    try:
        open_server.url = open_server.url.replace("0.0.0.0", "127.0.0.1")
        assert open_server.ask("/health")[0] == 200
        assert "Anybody who reaches this server" in open_server.log
        assert "--api-key-file" in open_server.log
    finally:
        assert open_server.stop() == 0


def test_nothing_said_is_in_the_log(chat_file: Path) -> None:
    secret = "a very particular sentence"
    body = {**SAY, "messages": [{"role": "user", "content": secret}]}
    server = Server(chat_file)
    try:
        assert server.ask("/v1/chat/completions", body)[0] == 200
        assert server.ask("/v1/chat/completions", {**body, "temperature": secret})[0] == 400
        broken = f'{{"{secret}": '.encode()
        assert server.ask("/v1/chat/completions", raw=broken)[0] == 400
    finally:
        assert server.stop() == 0
    assert server.url in server.log  # whole only now
    assert secret not in server.log


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"prompt": "\\ud800", "content": "\\ud800", "model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
    ],
)
def test_what_is_no_request_is_refused_everywhere(server: Server, raw: bytes) -> None:
    for path in POSTED:
        status, body, _ = server.ask(path, raw=raw)
        assert 400 <= status < 500 or status == 200, (path, status, body)
        assert b"Traceback" not in json.dumps(body).encode()


def test_random_bodies_crash_nothing(server: Server) -> None:
    """Bodies with the right names and any values: an answer or a sentence, never a failure."""
    random_ = random.Random(1)
    names = [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "temperature",
        "n",
        "stop",
        "tools",
        "seed",
    ]
    names += ["stream_options", "response_format", "tool_choice", "logit_bias", "input", "system"]
    names += ["options", "format", "think", "logprobs", "thinking", "text", "content", "tokens"]
    names += ["chat_template_kwargs", "top_k", "suffix", "echo", "raw", "instructions"]

    def value(depth: int = 0) -> object:
        plain = [None, True, 0, -1, 3, 2**63, 1.5, "", "x", "\x00", "user", "auto", "json", [], {}]
        if depth > 2 or random_.random() < 0.6:
            return random_.choice(plain)
        if random_.random() < 0.5:
            return [value(depth + 1) for _ in range(random_.randint(1, 3))]
        keys = ["role", "content", "type", "text", "name", "function", "parameters", "schema", "id"]
        return {random_.choice(keys): value(depth + 1) for _ in range(random_.randint(1, 4))}

    say = [{"role": "user", "content": "x"}]
    for _ in range(150):
        path = random_.choice(POSTED)
        body = {"messages": say, "prompt": "x", "input": "x", "max_tokens": 1, "stream": False}
        body["options"] = {"num_predict": 1}
        for name in random_.sample(names, 3):
            body[name] = value()
        status, answer, _ = server.ask(path, body)
        assert status == 200 or 400 <= status < 500, (path, body, status, answer)
    assert server.ask("/health")[1]["status"] == "ok"


def test_bodies_and_headers_have_limits(server: Server) -> None:
    status, body, _ = server.ask("/v1/chat/completions", raw=b'"' + b"x" * (5 << 20) + b'"')
    assert status == 413
    assert "longer than" in body["error"]["message"]
    for request in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /page/..%2f..%2fapp.py HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
            except ConnectionError:
                pass
            assert answer == b"" or answer.split()[1] in (b"400", b"404", b"431"), answer
            assert b"root:" not in answer
    assert server.ask("/health")[0] == 200


def test_methods_and_paths_that_are_not_there(server: Server) -> None:
    assert server.ask("/v1/chat/completions")[0] == 405
    status, body, _ = server.ask("/v1/nothing")
    assert status == 404
    assert body["error"]["type"] == "invalid_request_error"
    assert server.ask("/v1/messages/batches", SAY)[1]["type"] == "error"


def test_a_server_without_requests_sleeps(server: Server) -> None:
    """No thread of it wakes: not the loop's, not the engine's, not the library's."""

    def wakes() -> int:
        total = 0
        for status in Path(f"/proc/{server.process.pid}/task").glob("*/status"):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
        return total

    server.ask("/v1/chat/completions", SAY)
    deadline = time.monotonic() + 120
    before, now = -1, wakes()
    while now != before:  # until connections are closed and contexts are written
        assert time.monotonic() < deadline, "it never sleeps"
        time.sleep(0.3)
        before, now = now, wakes()


def test_a_server_without_a_place_for_contexts_goes_on(
    tmp_path: Path, stories_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "file"))
    started = Server(stories_path)
    try:
        body = {"prompt": "Once upon a time", "max_tokens": 2}
        assert started.ask("/v1/completions", body)[0] == 200
        assert "not kept over restarts" in started.log
    finally:
        assert started.stop() == 0


def test_the_command_refuses_in_one_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    model = Path("tests/data/stories260k.awq.gguf")
    command("serve", model, "--api-key-file", empty).assert_one_sentence("no key")
    command("serve", model, "--api-key-file", tmp_path / "x").assert_one_sentence("Cannot read")
    command("serve", model, "--host", "no.such.host.invalid").assert_one_sentence("--host")
    command("serve", model, "--memory", "lots").assert_one_sentence("lots")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command("serve", model, "--port", port).assert_one_sentence("--port")
