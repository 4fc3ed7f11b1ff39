"""Ollama's interface, with the official client and by hand."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from serving import Server

ollama = pytest.importorskip("ollama")

SAY = [{"role": "user", "content": "Good morning! What is your name?"}]
OPTIONS = {"seed": 5, "num_predict": 20, "temperature": 0.7, "num_ctx": 8192}
TOOL = {
    "type": "function",
    "function": {
        "name": "turn_on",
        "description": "Turns something on",
        "parameters": {
            "type": "object",
            "properties": {"what": {"enum": ["light", "radio"]}},
            "required": ["what"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(server: Server) -> object:
    return ollama.Client(host=server.url)


def test_chats_and_streams_say_the_same(client: object, server: Server) -> None:
    whole = client.chat(model="novels-chat:latest", messages=SAY, options=OPTIONS, keep_alive=-1)
    parts = list(client.chat(model="novels-chat", messages=SAY, options=OPTIONS, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert whole.done_reason == parts[-1].done_reason
    assert whole.eval_count == parts[-1].eval_count > 0
    assert whole.eval_duration > 0
    body = {"messages": SAY, "seed": 5, "max_tokens": 20, "temperature": 0.7}
    other = server.ask("/v1/chat/completions", body)[1]
    assert other["choices"][0]["message"]["content"] == whole.message.content


def test_it_streams_unless_told_otherwise(server: Server) -> None:
    body = {"model": "m", "messages": SAY, "options": OPTIONS}
    request = urllib.request.Request(server.url + "/api/chat", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers.get_content_type() == "application/x-ndjson"
        lines = [json.loads(line) for line in response.read().splitlines()]
    assert lines[-1]["done"] is True
    assert all(line["created_at"].endswith("Z") for line in lines)


def test_generate_is_a_chat_or_raw(client: object, chat_file: Path) -> None:
    from awq_edge import Model

    asked = client.generate(model="m", prompt=SAY[0]["content"], options=OPTIONS)
    chat = client.chat(model="m", messages=SAY, options=OPTIONS)
    assert asked.response == chat.message.content
    raw = client.generate(model="m", prompt="It was a dark", raw=True, options=OPTIONS)
    with Model.open(chat_file, threads=1) as model:
        alone = model.generate("It was a dark", seed=5, max_tokens=20, temperature=0.7)
        assert raw.response == alone.text()
    assert client.generate(model="m", prompt="").done_reason == "load"


def test_a_form_is_kept(client: object) -> None:
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "bad"]},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["mood", "age"],
        "additionalProperties": False,
    }
    answer = client.chat(
        model="m", messages=SAY, format=schema, options={**OPTIONS, "num_predict": 80}
    )
    found = json.loads(answer.message.content)
    assert found["mood"] in ("good", "bad")
    assert 1 <= found["age"] <= 99


def test_models_are_listed_and_shown(client: object) -> None:
    assert [model.model for model in client.list().models] == ["novels-chat"]
    assert [model.model for model in client.ps().models] == ["novels-chat"]
    shown = client.show("novels-chat")
    assert "completion" in shown.capabilities
    assert "im_start" in shown.template


def test_earlier_calls_are_read(client: object) -> None:
    call = {"function": {"name": "turn_on", "arguments": {"what": "light"}}}
    messages = [
        *SAY,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_name": "turn_on"},
    ]
    answer = client.chat(model="m", messages=messages, tools=[TOOL], options=OPTIONS)
    assert answer.message.role == "assistant"


def test_errors_are_texts(client: object, server: Server) -> None:
    with pytest.raises(ollama.ResponseError, match=r"messages\[0\].role"):
        client.chat(model="m", messages=[{"role": "nobody", "content": "x"}])
    status, body, _ = server.ask("/api/chat", {"messages": SAY, "format": 3})
    assert status == 400
    assert set(body) == {"error"}
    assert server.ask("/api/nothing")[0] == 404
    assert server.ask("/api/version")[1]["version"]
    for wrong in ("soon", "5 parrots", [], True):
        status, body, _ = server.ask("/api/chat", {"messages": SAY, "keep_alive": wrong})
        assert (status == 400 and "keep_alive" in str(body)) or "duration" in str(body)
