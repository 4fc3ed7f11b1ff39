"""Bodies by the fields of every interface, most of them wrong somewhere, against a server.

    python tests/python/fuzz_requests.py chat.awq.gguf --bodies 20000 [--seed 1] [--clients 4]
    python tests/python/fuzz_requests.py scenes.awq.gguf --bodies 2000 --pictures 0.8

Each request is made from the fields that its path knows, then damaged in none to four places:
values of other types, extremes, fields of other paths, JSON that is cut off or has bytes changed.
Each holds a word that no other has. With ``--pictures`` so many of them hold pictures: sound and
damaged files in sound and damaged base64, with wrong types, and headers that promise too much.
Wrong is: a status that is neither 200 nor 400 to 499, an
answer that is no JSON or stream of it, another request's word in an answer, a traceback in the log,
a server that does not answer afterwards, or memory that has grown by more than a tenth and 32 MB
since the first quarter of the bodies; with pictures by 96 MB more, which the server keeps of them.

Prints how many answers had which status, and every request that was answered wrongly.
"""

from __future__ import annotations

import argparse
import base64
import copy
import http.client
import json
import random
import re
import struct
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from serving import Server

WORD = re.compile(r"zq[0-9a-f]{12}")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CHOICE = {"type": "function", "function": {"name": "f"}}
# What a field may hold; W is where the request's own word goes.
W = "W"
SAMPLING = {
    "temperature": [0, 0.7, 1, 2.0],
    "top_p": [0, 0.5, 1],
    "top_k": [0, 1, 40, -1],
    "min_p": [0, 0.05, 1],
    "seed": [0, 7, -1, 2**63],
    "presence_penalty": [0, 1.5, -2],
    "frequency_penalty": [0, 0.5],
    "repetition_penalty": [1, 1.2],
    "stop": ["x", ["a", "b"], []],
    "logit_bias": [{}, {"5": 1}, {"7": -100}],
    "max_tokens": [1, 2, 3],
    "n": [1, 2],
}
MESSAGES = [
    [{"role": "user", "content": W}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": W}],
    [{"role": "user", "content": [{"type": "text", "text": W}]}],
    [
        {"role": "user", "content": W},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ],
]  # fmt: skip
OPENAI = {
    "model": ["x", ""],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
    **SAMPLING,
}
FIELDS: dict[str, dict[str, list[Any]]] = {
    "/v1/chat/completions": {
        "messages": MESSAGES,
        **OPENAI,
        "max_completion_tokens": [1, 2],
        "logprobs": [True, False],
        "top_logprobs": [0, 2],
        "tools": [[], [TOOL]],
        "tool_choice": ["auto", "none", "required", CHOICE],
        "response_format": [
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        ],
        "chat_template_kwargs": [{}, {"enable_thinking": False}],
    },
    "/v1/completions": {
        "prompt": [W, [W, W], [1, 2, 3], [[1, 2], [3]]],
        **OPENAI,
        "logprobs": [0, 2],
        "echo": [True, False],
        "suffix": ["", "end"],
        "response_format": [{"type": "json_object"}],
    },
    "/v1/responses": {
        "input": [W, [{"role": "user", "content": W}]],
        "instructions": ["Be kind."],
        "max_output_tokens": [1, 16],
        "stream": [True, False],
        "temperature": [0, 1],
        "text": [{"format": {"type": "text"}}],
        "tools": [[{"type": "function", "name": "f", "parameters": SCHEMA}]],
        "tool_choice": ["auto", "required"],
        "reasoning": [{}, {"effort": "low"}],
    },
    "/v1/messages": {
        "model": ["x"],
        "messages": [[{"role": "user", "content": W}],
                     [{"role": "user", "content": [{"type": "text", "text": W}]}]],
        "max_tokens": [1, 2],
        "system": ["Be kind.", [{"type": "text", "text": "Be kind."}]],
        "stream": [True, False],
        "temperature": [0, 1],
        "stop_sequences": [["x"]],
        "tools": [[{"name": "f", "input_schema": SCHEMA}]],
        "tool_choice": [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "f"}],
        "thinking": [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}],
    },
    "/v1/messages/count_tokens": {"messages": MESSAGES[:2], "system": ["x"], "tools": [[]]},
    "/v1/embeddings": {
        "input": [W, [W, W], [1, 2, 3], [[1, 2]]],
        "encoding_format": ["float", "base64"],
        "dimensions": [1, 16],
        "model": ["x"],
    },
    "/api/chat": {
        "model": ["x"],
        "messages": MESSAGES[:2],
        "stream": [True, False],
        "options": [{"num_predict": 2}, {"num_predict": 1, "temperature": 0, "seed": 3}],
        "format": ["json", SCHEMA, ""],
        "tools": [[TOOL]],
        "think": [True, False],
        "keep_alive": ["5m", -1, 0, "1h30m"],
    },
    "/api/generate": {
        "model": ["x"],
        "prompt": [W],
        "suffix": ["", "end"],
        "system": ["Be kind."],
        "stream": [True, False],
        "raw": [True, False],
        "options": [{"num_predict": 2}],
        "format": ["json"],
        "keep_alive": ["5m", -1],
    },
    "/api/embed": {"input": [W, [W]], "truncate": [True, False], "dimensions": [8]},
    "/api/embeddings": {"prompt": [W]},
    "/api/show": {"model": ["x"]},
    "/tokenize": {"content": [W], "add_special": [True]},
    "/detokenize": {"tokens": [[1, 2, 3], []]},
}  # fmt: skip
# Fields without which a request would go on for long.
SHORT = {
    "/v1/chat/completions": {"max_tokens": 2},
    "/v1/completions": {"max_tokens": 2},
    "/v1/responses": {"max_output_tokens": 2},
    "/v1/messages": {"max_tokens": 2},
    "/api/chat": {"options": {"num_predict": 2}},
    "/api/generate": {"options": {"num_predict": 2}},
}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e-300, 1e300, 0.1),
    *("", "x", "\x00", "\ud800", "0", "true", "null", "😀" * 50, "a" * 5000, "<|im_end|>"),
    *([], {}, [[]], [{}], {"": {}}, [None], {"type": None}, {"role": 1}, [[[[[[]]]]]]),
    *({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, {"$ref": "#"}),
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}},
]


def filled(value: Any, word: str) -> Any:
    """A value with the request's word in its places."""
    if value == W:
        return word
    if isinstance(value, list):
        return [filled(entry, word) for entry in value]
    if isinstance(value, dict):
        return {name: filled(entry, word) for name, entry in value.items()}
    return value


def damaged(random_: random.Random, value: Any, depth: int = 0) -> Any:
    """A value with one place changed."""
    if depth < 4 and isinstance(value, dict) and value and random_.random() < 0.7:
        name = random_.choice(list(value))
        if random_.random() < 0.2:
            return {other: entry for other, entry in value.items() if other != name}
        return {**value, name: damaged(random_, value[name], depth + 1)}
    if depth < 4 and isinstance(value, list) and value and random_.random() < 0.7:
        place = random_.randrange(len(value))
        changed = list(value)
        changed[place] = damaged(random_, value[place], depth + 1)
        return changed * random_.choice([1, 1, 1, 2])
    return copy.deepcopy(random_.choice(ODD))  # what is changed later is the body's own


def _shorten(body: dict[str, Any], short: dict[str, Any]) -> None:
    """Keeps a request from writing for long, which would be no fault."""

    def goes_on(limit: object) -> bool:
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        return limit is None or (number and not 0 < limit < 20)  # type: ignore[operator]

    for name, value in short.items():
        found = body.get(name)
        if isinstance(value, int):
            if goes_on(found):
                body[name] = value
        elif found is None:
            body[name] = value
        elif isinstance(found, dict) and goes_on(found.get("num_predict")):
            body[name] = {**found, **value}
    if "max_completion_tokens" in body and goes_on(body["max_completion_tokens"]):
        body["max_completion_tokens"] = 2


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG whose header and rows need not agree."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def picture_file(random_: random.Random) -> bytes:
    """A file of a picture, most of them damaged."""
    width, height = random_.choice([(1, 1), (3, 5), (40, 30), (96, 96), (200, 1), (7, 400)])
    row = b"\0" + random_.randbytes(3 * width)
    kind = random_.random()
    if kind < 0.45:
        return png(width, height, row * height)
    if kind < 0.55:  # a bomb: more than the rows, or rows without end
        sides = [(60_000, 60_000), (16_384, 16_384), (2**31 - 1, 1), (0, 0), (8_000, 7_000)]
        return png(*random_.choice(sides), bytes(1 << random_.randint(0, 20)))
    if kind < 0.65:
        text = chunk(b"tEXt", b"Comment\0" + bytes(random_.choice([10, 1 << 16, 1 << 20])))
        whole = png(width, height, row * height)
        return whole[:33] + text + whole[33:]
    if kind < 0.75:
        begins = [b"<svg>", b"%PDF-1.7", b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"BM",
                  b"\0\0\0\x18ftypheic", b"II*\0", b"P6\n9 9\n255\n", b""]  # fmt: skip
        return random_.choice(begins) + random_.randbytes(random_.choice([0, 30, 3000]))
    whole = bytearray(png(width, height, row * height))
    if kind < 0.9:
        for _ in range(random_.randint(1, 9)):
            whole[random_.randrange(len(whole))] = random_.randrange(256)
        return bytes(whole)
    return bytes(whole[: random_.randrange(len(whole))])


def picture_part(random_: random.Random, path: str) -> Any:
    """A picture as a path's protocol writes it, or another's."""
    data = base64.b64encode(picture_file(random_)).decode()
    if random_.random() < 0.15:
        data = random_.choice([data[:-1], data[: len(data) // 2], data + "=", "é" + data, " \n",
                               data.replace("A", "-"), "=" * 9, "\n".join(data)])  # fmt: skip
    kinds = ["image/png", "image/jpeg", "IMAGE/PNG", "text/html", "image/svg+xml", "", "a" * 3000]
    media = kinds[0] if random_.random() < 0.7 else random_.choice(kinds)
    base = (
        ";base64," if random_.random() < 0.9 else random_.choice([",", ";base64", ";x=y;base64,"])
    )
    url = f"data:{media}{base}{data}"
    if random_.random() < 0.08:
        url = random_.choice(
            ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "//x", "data:", data]
        )
    forms: dict[str, Any] = {
        "/v1/chat/completions": {"type": "image_url", "image_url": {"url": url}},
        "/v1/responses": {"type": "input_image", "image_url": url, "detail": "auto"},
        "/v1/messages": {
            "type": "image",
            "source": {"type": "base64", "media_type": media, "data": data},
        },
    }
    forms["/v1/messages/count_tokens"] = forms["/v1/messages"]
    own = forms.get(path, data)
    return own if random_.random() < 0.9 else random_.choice(list(forms.values()))


def with_pictures(random_: random.Random, path: str, body: dict[str, Any], word: str) -> None:
    """Puts pictures into a body whose path has a place for them."""
    parts = [picture_part(random_, path) for _ in range(random_.choice([1, 1, 1, 2, 3]))]
    if random_.random() < 0.1:
        parts = parts[:1] * 40  # more than a request may hold
    if path.startswith("/api/"):
        body["images"] = parts
        if path == "/api/chat":
            body["messages"] = [{"role": "user", "content": word, "images": body.pop("images")}]
        return
    kind = "input_text" if path == "/v1/responses" else "text"
    parts.insert(random_.randint(0, len(parts)), {"type": kind, "text": word})
    role = random_.choice(["user"] * 8 + ["system", "assistant", "tool"])
    messages = [{"role": role, "content": parts}]
    if random_.random() < 0.3:
        messages += [{"role": "assistant", "content": "red"}, {"role": "user", "content": word}]
    body["input" if path == "/v1/responses" else "messages"] = messages


SEEING = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
          "/api/chat", "/api/generate"]  # fmt: skip


def request(random_: random.Random, word: str, pictures: float = 0.0) -> tuple[str, bytes]:
    """A path and a body; ``pictures`` is how many of the bodies hold some."""
    shown = random_.random() < pictures
    path = random_.choice(SEEING if shown else list(FIELDS))
    fields = FIELDS[path]
    first = next((name for name in fields if name != "model"), "model")
    names = {first, *random_.sample(list(fields), random_.randint(0, min(4, len(fields))))}
    body = {name: filled(random_.choice(fields[name]), word) for name in sorted(names)}
    body = {**SHORT.get(path, {}), **body}
    if shown:
        with_pictures(random_, path, body, word)
    for _ in range(random_.choice([0, 0, 0, 1] if shown else [0, 1, 1, 1, 2, 4])):
        kind = random_.random()
        if kind < 0.75:
            changed = damaged(random_, body)
            body = changed if isinstance(changed, dict) else body
        elif kind < 0.9:
            other = FIELDS[random_.choice(list(FIELDS))]
            name = random_.choice(list(other))
            body[name] = filled(random_.choice(other[name]), word)
        else:
            name = random_.choice(["", "x" * 300, "constructor", "model"])
            body[name] = copy.deepcopy(random_.choice(ODD))
    _shorten(body, SHORT.get(path, {}))
    data = json.dumps(body).encode()
    if random_.random() < 0.08:
        data = data[: random_.randrange(len(data))]
    elif random_.random() < 0.08:
        changed_bytes = bytearray(data)
        for _ in range(random_.randint(1, 3)):
            changed_bytes[random_.randrange(len(data))] = random_.randrange(256)
        data = bytes(changed_bytes)
    return path, data


class Fuzzing:
    """What the clients share."""

    def __init__(self, server: Server, bodies: int, seed: int, pictures: float = 0.0) -> None:
        self.server = server
        self._pictures = pictures
        self._plan = iter(range(bodies))
        self._seed = seed
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.done = 0

    def client(self) -> None:
        """Sends one body after the other."""
        connection: http.client.HTTPConnection | None = None
        while True:
            with self._lock:
                number = next(self._plan, None)
            if number is None:
                return
            random_ = random.Random(f"{self._seed} {number}")
            word = f"zq{random_.getrandbits(48):012x}"
            path, data = request(random_, word, self._pictures)
            try:
                connection, response, answer = self._sent(connection, path, data)
            except (OSError, http.client.HTTPException) as error:
                connection = None
                self._fault(number, path, data, repr(error))
                continue
            if response.will_close:
                connection.close()
                connection = None
            fault = wrong(
                path, response.status, response.getheader("Content-Type", ""), answer, word
            )
            if fault:
                self._fault(number, path, data, fault)
            with self._lock:
                self.statuses[response.status] += 1
                self.done += 1

    def _sent(
        self, kept: http.client.HTTPConnection | None, path: str, data: bytes
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, bytes]:
        """Sends a body; gives the connection, the response and what it says.

        A kept connection that was idle for too long may be closed by then: a new one is made.
        """
        new = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=300)
        for connection in (new,) if kept is None else (kept, new):
            try:
                connection.request("POST", path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return connection, response, response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if connection is new:
                    raise
        raise AssertionError("two connections at most")

    def _fault(self, number: int, path: str, data: bytes, what: str) -> None:
        with self._lock:
            self.faults.append(f"body {number}, {path}: {what}\n    {data[:600]!r}")


def wrong(path: str, status: int, kind: str, answer: bytes, word: str) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if status != 200 and not 400 <= status < 500:
        return f"status {status}: {answer[:300]!r}"
    try:
        text = answer.decode()
        if kind.startswith("text/event-stream"):
            for line in text.splitlines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    json.loads(line[6:])
        elif kind.startswith("application/x-ndjson"):
            for line in text.splitlines():
                json.loads(line)
        else:
            json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}: {answer[:300]!r}"
    others = set(WORD.findall(text)) - {word}
    return f"another request's word: {others}" if others else ""


def resident_bytes(server: Server) -> int:
    """What the server holds apart from mapped files."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def fuzz(server: Server, bodies: int, seed: int, clients: int, pictures: float = 0.0) -> Fuzzing:
    """Sends bodies and waits for all answers."""
    fuzzing = Fuzzing(server, bodies, seed, pictures)
    threads = [threading.Thread(target=fuzzing.client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sum(fuzzing.statuses.values()) + len(fuzzing.faults) < bodies:
        fuzzing.faults.append("not all bodies were sent")
    if server.ask("/health")[1].get("status") != "ok":
        fuzzing.faults.append("the server does not answer")
    return fuzzing


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--bodies", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pictures", type=float, default=0.0, help="share of bodies with some")
    arguments = parser.parse_args()
    server = Server(arguments.model, "--cache-size", "0", "--parallel", arguments.clients)
    try:
        quarter = arguments.bodies // 4
        shown = arguments.pictures
        first = fuzz(server, quarter, arguments.seed, arguments.clients, shown)
        before = resident_bytes(server)
        left = arguments.bodies - quarter
        rest = fuzz(server, left, arguments.seed + 1, arguments.clients, shown)
        after = resident_bytes(server)
    finally:
        server.stop()
    faults = [*first.faults, *rest.faults]
    kept = (32 << 20) + ((96 << 20) if arguments.pictures else 0)
    if after > 1.1 * before + kept:
        faults.append(f"memory grew from {before / 1e6:.1f} MB to {after / 1e6:.1f} MB")
    statuses = dict(sorted((first.statuses + rest.statuses).items()))
    print(f"{sum(statuses.values())} answers by status: {statuses}")
    print(f"memory {before / 1e6:.1f} MB after a quarter, {after / 1e6:.1f} MB in the end")
    for fault in faults[:20]:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
