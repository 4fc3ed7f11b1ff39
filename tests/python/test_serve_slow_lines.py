"""Bodies over bad lines, and connections that say nothing: who is waited for, and how long."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server

# Limits of seconds, where a real server has half a minute and a whole one, at a higher rate.
HURRY = """
import awq_edge.serve.http as http, awq_edge.serve.patient_protocol as protocol
http._PAUSE_SECONDS, http._BODY_SECONDS, http._LEAST_BYTES_PER_SECOND = 5.0, 3.0, 5000
protocol._HEAD_SECONDS = 1.0
"""
BODY = json.dumps({"prompt": "Once upon a time", "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def hurried(stories_path: Path) -> Iterator[Server]:
    server = Server(stories_path, "--cache-size", "0", prelude=HURRY)
    yield server
    server.stop()


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def head(length: int) -> bytes:
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        f"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def answer(connection: socket.socket) -> bytes:
    read = b""
    try:
        while part := connection.recv(65536):
            read += part
    except ConnectionError:
        pass
    return read


def sent_slowly(server: Server, body: bytes, part: int, pause: float) -> bytes:
    """The answer to a body that comes in parts."""
    with connected(server) as connection:
        connection.sendall(head(len(body)))
        try:
            for begin in range(0, len(body), part):
                connection.sendall(body[begin : begin + part])
                time.sleep(pause)
        except ConnectionError:
            pass
        return answer(connection)


def test_a_slow_line_is_waited_for(hurried: Server) -> None:
    """Longer than all limits, that for a head too, for something comes all the time.

    Ten times as fast as the least: this machine's pauses may be longer than they are asked for.
    """
    body = b" " * 200_000 + BODY  # white space before JSON
    began = time.monotonic()
    told = sent_slowly(hurried, body, 12_500, 0.25)
    assert time.monotonic() - began > 3.5
    assert told.split()[1] == b"200", told


def test_a_line_that_is_dead_is_not(hurried: Server) -> None:
    began = time.monotonic()
    with connected(hurried) as connection:
        connection.sendall(head(len(BODY)) + BODY[:20])
        told = answer(connection)
    assert time.monotonic() - began > 2.8
    assert told.split()[1] == b"408"
    assert b"nothing came for 5 seconds" in told


def test_a_line_that_drips_is_not_either(hurried: Server) -> None:
    told = sent_slowly(hurried, BODY + b" " * 600, 1, 0.1)
    assert told.split()[1] == b"408", told


def test_a_connection_that_says_nothing_is_closed(hurried: Server) -> None:
    began = time.monotonic()
    with connected(hurried) as connection:
        assert answer(connection) == b""
    assert time.monotonic() - began > 0.8


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_head_that_drips_is_not_waited_for(hurried: Server, asked_before: bool) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(hurried) as connection:
        if asked_before:
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.settimeout(0.1)
        endless = request[:-2] + b"X: " + b"a" * 600
        for place in range(len(endless)):
            try:
                connection.sendall(endless[place : place + 1])
                if connection.recv(65536) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("it was waited for")
