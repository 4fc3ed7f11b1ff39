"""docs/home-assistant.md: what its Ollama integration sends, and what the second sentence costs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/home-assistant.md").read_text(encoding="utf-8")
# As the integration writes them: an overview of the devices behind the instructions.
DEVICES = "\n".join(
    f"- names: {room} {kind}\n  domain: {kind}\n  state: 'off'\n  areas: {room}"
    for room in ("Kitchen", "Hall", "Study", "Bedroom", "Attic")
    for kind in ("light", "fan", "lock")
)
INSTRUCTIONS = f"You are a voice assistant for Home Assistant.\n{DEVICES}"
TOOL = {
    "type": "function",
    "function": {
        "name": "HassTurnOn",
        "description": "Turns on a device",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "area": {"type": "string"}},
        },
    },
}


@pytest.fixture
def server(chat_file: Path) -> Iterator[Server]:
    """One that has read nothing yet and keeps nothing on disk."""
    started = Server(chat_file, "--cache-size", "0")
    yield started
    started.stop()


def ask(server: Server, messages: list[dict[str, Any]], **fields: object) -> list[dict[str, Any]]:
    """Sends what the integration sends; gives the lines of the answer."""
    body = {
        "model": "novels-chat",
        "messages": messages,
        "stream": True,
        "think": False,
        "keep_alive": -1,
        "options": {"num_ctx": 8192, "num_predict": 8, "temperature": 0},
        **fields,
    }
    request = urllib.request.Request(
        f"{server.url}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return [json.loads(line) for line in answer.read().splitlines()]


def talk(server: Server, instructions: str, said: list[str]) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": instructions},
        *({"role": "user", "content": text} for text in said),
    ]


def test_the_models_are_listed_when_the_integration_is_added(server: Server) -> None:
    status, listed, _ = server.ask("/api/tags")
    assert status == 200
    assert [model["model"] for model in listed["models"]] == ["novels-chat"]


def test_a_sentence_with_the_fields_that_it_sends(server: Server) -> None:
    lines = ask(server, talk(server, INSTRUCTIONS, ["Good evening!"]), tools=[TOOL])
    assert all(line["message"]["role"] == "assistant" for line in lines)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["prompt_eval_count"] > 100 and lines[-1]["eval_count"] > 0


def reused(server: Server, first: str, second: str) -> float:
    """The share of the second sentence's prompt that is not read again."""
    ask(server, talk(server, first, ["Good evening!"]))
    reused, whole = "prompt_tokens_reused_total", "prompt_tokens_total"
    before = server.metric(reused), server.metric(whole)
    ask(server, talk(server, second, ["Good night!"]))
    return (server.metric(reused) - before[0]) / (server.metric(whole) - before[1])


def test_the_second_sentence_reads_only_what_is_new(server: Server) -> None:
    assert reused(server, INSTRUCTIONS, INSTRUCTIONS) > 0.95


def test_a_clock_spoils_that_at_the_beginning_and_not_at_the_end(server: Server) -> None:
    early, late = "The time is 10:41.\n", "The time is 23:59.\n"
    assert reused(server, early + INSTRUCTIONS, late + INSTRUCTIONS) < 0.1
    assert reused(server, f"{INSTRUCTIONS}\n{early}", f"{INSTRUCTIONS}\n{late}") > 0.9


def test_the_page_names_metrics_that_there_are(server: Server) -> None:
    for name in ("prompt_tokens_reused_total", "prompt_tokens_total"):
        assert f"`awq_edge_{name}`" in PAGE
        server.metric(name)
