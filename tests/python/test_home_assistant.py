"""docs/home-assistant.md: what its Ollama integration sends, and what the second sentence costs."""

from __future__ import annotations

import asyncio
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


@pytest.fixture(scope="module")
def long_running(chat_file: Path) -> Iterator[Server]:
    """One for all who do not care what it has read."""
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


def talk(instructions: str, said: list[str]) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": instructions},
        *({"role": "user", "content": text} for text in said),
    ]


def test_the_models_are_listed_when_the_integration_is_added(server: Server) -> None:
    status, listed, _ = server.ask("/api/tags")
    assert status == 200
    assert [model["model"] for model in listed["models"]] == ["novels-chat"]


def test_a_sentence_with_the_fields_that_it_sends(server: Server) -> None:
    lines = ask(server, talk(INSTRUCTIONS, ["Good evening!"]), tools=[TOOL])
    assert all(line["message"]["role"] == "assistant" for line in lines)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["prompt_eval_count"] > 100 and lines[-1]["eval_count"] > 0


def reused(server: Server, first: str, second: str) -> float:
    """The share of the second sentence's prompt that is not read again."""
    ask(server, talk(first, ["Good evening!"]))
    reused, whole = "prompt_tokens_reused_total", "prompt_tokens_total"
    before = server.metric(reused), server.metric(whole)
    ask(server, talk(second, ["Good night!"]))
    return (server.metric(reused) - before[0]) / (server.metric(whole) - before[1])


def test_the_second_sentence_reads_only_what_is_new(server: Server) -> None:
    assert reused(server, INSTRUCTIONS, INSTRUCTIONS) > 0.95


def test_a_clock_spoils_that_at_the_beginning_and_not_at_the_end(server: Server) -> None:
    early, late = "The time is 10:41.\n", "The time is 23:59.\n"
    assert reused(server, early + INSTRUCTIONS, late + INSTRUCTIONS) < 0.1
    assert reused(server, f"{INSTRUCTIONS}\n{early}", f"{INSTRUCTIONS}\n{late}") > 0.9


# ---- with the clients that the integrations use -------------------------------------------------


def steps(server: Server, work: Any) -> Any:
    """What a coroutine gives, which is given the client as the integration makes it."""
    ollama = pytest.importorskip("ollama")

    async def run() -> Any:
        return await work(
            ollama.AsyncClient(host=server.url, headers={"Authorization": "Bearer k"})
        )

    return asyncio.run(run())


def test_adding_the_integration_and_looking_every_half_a_minute(long_running: Server) -> None:
    """A list within five seconds, and then the models that are listed and loaded, side by side."""

    async def work(client: Any) -> Any:
        return await asyncio.wait_for(asyncio.gather(client.list(), client.ps()), 5)

    listed, loaded = steps(long_running, work)
    assert [model["model"] for model in listed.get("models", [])] == ["novels-chat"]
    assert [model.model for model in loaded.models] == ["novels-chat"]
    assert loaded.models[0].size > 0


def test_a_model_that_is_not_here_is_not_downloaded(long_running: Server) -> None:
    """What the integration asks for when another model is chosen than those that are listed."""
    ollama = pytest.importorskip("ollama")

    async def work(client: Any) -> Any:
        return await client.pull("qwen3:4b")

    with pytest.raises(
        ollama.ResponseError, match=r"no model 'qwen3:4b' here, but novels-chat"
    ) as e:
        steps(long_running, work)
    assert e.value.status_code == 404
    for name in ("novels-chat", "novels-chat:latest"):

        async def present(client: Any, name: str = name) -> Any:
            whole = await client.pull(name)
            parts = [part async for part in await client.pull(name, stream=True)]
            return [whole.status, *(part.status for part in parts)]

        assert steps(long_running, present) == ["success", "success"]


@pytest.mark.parametrize("keep_alive", [-1, "300s"])
@pytest.mark.parametrize("think", [None, False, True])
def test_an_answer_that_calls_and_goes_on(
    long_running: Server, keep_alive: Any, think: Any
) -> None:
    """All arguments of the integration's call; then the result of a function, without an id."""
    messages: list[dict[str, Any]] = talk(INSTRUCTIONS, ["Turn on the light"])
    called = {"function": {"name": "HassTurnOn", "arguments": {"name": "Kitchen light"}}}
    later = [
        *messages,
        {"role": "assistant", "content": None, "thinking": None, "tool_calls": [called]},
        {"role": "tool", "content": json.dumps({"data": {"success": []}, "error": None})},
    ]

    async def work(client: Any) -> list[Any]:
        found = []
        for said in (messages, later):
            stream = await client.chat(
                model="novels-chat",
                messages=said,
                tools=[TOOL],
                stream=True,
                keep_alive=keep_alive,
                options={"num_ctx": 8192.0, "num_predict": 6},
                think=think,
                format=None,
            )
            found.append([part async for part in stream])
        return found

    for parts in steps(long_running, work):
        assert parts[-1].done and 0 < parts[-1].eval_count <= 6
        assert all(part["message"].get("role") == "assistant" for part in parts)


# What its selectors become in the schema of an AI Task.
SELECTORS = {
    "colour": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3,
               "format": "RGB"},
    "country": {"type": "string", "format": "ISO 3166-1 alpha-2"},
    "day": {"type": "string", "format": "date"},
    "entity": {"type": "string", "format": "entity_id"},
    "entities": {"type": "array", "items": {"type": "string", "format": "entity_id"}},
    "number": {"type": "number", "minimum": 0.0, "maximum": 9.0},
    "one": {"type": "string", "enum": ["cold", "hot"]},
    "some": {"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]},
             "uniqueItems": True},
    "template": {"type": "string", "format": "jinja2"},
    "time": {"type": "string", "format": "time"},
    "whether": {"type": "boolean"},
}  # fmt: skip

ENDLESS = ("colour", "country", "entities", "entity", "number", "template")


@pytest.mark.parametrize("name", SELECTORS)
def test_a_task_with_a_structure(long_running: Server, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {name: SELECTORS[name]}, "required": [name]}

    async def work(client: Any) -> str:
        stream = await client.chat(
            model="novels-chat",
            messages=[{"role": "user", "content": "Who is at the door?"}],
            stream=True,
            keep_alive=-1,
            options={"num_ctx": 8192, "seed": 3, "num_predict": 200},
            format=schema,
        )
        return "".join([part.message.content async for part in stream])

    text = steps(long_running, work)
    try:
        answer = json.loads(text)
    except ValueError:  # a string or a number without end, which num_predict has cut
        assert name in ENDLESS, text
        return
    assert set(answer) == {name}
    jsonschema.validate(answer, schema)


def test_an_integration_for_servers_like_openai_s(long_running: Server) -> None:
    """The custom integration that most take: its fields, headers and injected messages."""
    openai = pytest.importorskip("openai")
    schema = {
        "type": "object",
        "properties": {"who": {"type": ["string", "null"], "maxLength": 8}},
        "required": ["who"],
    }
    tool = {**TOOL, "function": {**TOOL["function"], "description": "A callable function"}}
    said = talk(INSTRUCTIONS, [])
    user = {"role": "user", "content": [{"type": "text", "text": "Good evening!"}]}
    call = {
        "type": "function",
        "id": "call_1",
        "function": {"name": "HassTurnOn", "arguments": json.dumps({"area": "Hall"})},
    }
    injected = [
        {"role": "tool", "tool_call_id": "injected_content", "content": "It is Monday."},
        {"role": "assistant", "content": "It is Monday."},
        {"role": "user", "content": "It is Monday."},
    ]
    histories = [
        [*said, user],
        *([*said, message, user] for message in injected),
        [
            *said,
            user,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "{}"},
        ],
    ]

    async def work() -> None:
        client = openai.AsyncOpenAI(base_url=f"{long_running.url}/v1", api_key="any", max_retries=0)
        assert [model.id for model in (await client.models.list()).data] == ["novels-chat"]
        settings = {
            "model": "novels-chat",
            "temperature": 0.6,
            "parallel_tool_calls": True,
            "extra_headers": {"HTTP-Referer": "https://example.org", "X-Title": "Home Assistant"},
            "extra_body": {
                "chat_template_kwargs": {"enable_thinking": False},
                "metadata": {"session_id": "01J"},
            },
            "max_tokens": 6,
            "stream": True,
        }
        for messages in histories:
            stream = await client.chat.completions.create(
                messages=messages, tools=[tool], **settings
            )
            events = [event async for event in stream]
            last = events[-1]
            assert last.choices[0].finish_reason in ("length", "stop")
            # It shows them, and complains of a server that has none.
            assert 0 < last.timings["predicted_n"] <= 6
            assert last.timings["prompt_n"] + last.timings["cache_n"] > 100
        form = {
            "type": "json_schema",
            "json_schema": {"name": "who", "strict": True, "schema": schema},
        }
        stream = await client.chat.completions.create(
            messages=[user], response_format=form, **{**settings, "max_tokens": 200}
        )
        text = "".join(
            [event.choices[0].delta.content or "" async for event in stream if event.choices]
        )
        assert set(json.loads(text)) == {"who"}

    asyncio.run(work())


def test_the_page_names_metrics_that_there_are(server: Server) -> None:
    for name in ("prompt_tokens_reused_total", "prompt_tokens_total"):
        assert f"`awq_edge_{name}`" in PAGE
        server.metric(name)
