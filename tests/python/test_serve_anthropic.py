"""Anthropic's interface, with the official client and by hand."""

from __future__ import annotations

import json
import urllib.request

import pytest
from serving import Server

anthropic = pytest.importorskip("anthropic")

SAY = [{"role": "user", "content": "Good morning! What is your name?"}]
# Not every release of the client has a name for it.
GREEDY = {"temperature": 0}
TOOL = {
    "name": "set_light",
    "description": None,
    "input_schema": {
        "type": "object",
        "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
        "required": ["room", "on"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server: Server) -> object:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def test_messages_and_streams_say_the_same(client: object, server: Server) -> None:
    settings = dict(model="any", max_tokens=24, messages=SAY, extra_body=GREEDY)
    whole = client.messages.create(**settings)
    assert whole.content[0].type == "text"
    with client.messages.stream(**settings) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    count = client.messages.count_tokens(model="any", messages=SAY).input_tokens
    usage = whole.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == count
    # The stream came second and found the prompt in the cache.
    assert final.usage.cache_read_input_tokens > 0
    # The same as OpenAI's interface gives.
    body = {"messages": SAY, "temperature": 0, "max_tokens": 24}
    other = server.ask("/v1/chat/completions", body)[1]
    assert other["choices"][0]["message"]["content"] == text


def test_events_come_in_their_order(server: Server) -> None:
    body = {"max_tokens": 6, "messages": SAY, "stream": True, "temperature": 0}
    request = urllib.request.Request(server.url + "/v1/messages", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        blocks = response.read().decode().strip().split("\n\n")
    names = []
    for block in blocks:
        first, second = block.split("\n")
        names.append(first.removeprefix("event: "))
        assert json.loads(second.removeprefix("data: "))["type"] == names[-1]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stop_sequence_is_named(client: object) -> None:
    settings = dict(model="any", max_tokens=24, extra_body=GREEDY)
    text = client.messages.create(**settings, messages=SAY).content[0].text
    word = text.split()[1]
    cut = client.messages.create(**settings, messages=SAY, stop_sequences=["@@", word])
    assert cut.stop_reason == "stop_sequence"
    assert cut.stop_sequence == word
    assert cut.content[0].text == text[: text.index(word)]


def test_a_call_and_its_result_go_round(client: object) -> None:
    """A model that never saw a tool is made to call one: the form of the answer is enforced."""
    settings = dict(
        model="any", max_tokens=60, tools=[TOOL], system=[{"type": "text", "text": "You are calm."}]
    )
    forced = {"type": "tool", "name": "set_light"}
    called = client.messages.create(
        **settings, messages=SAY, tool_choice=forced, extra_body={"seed": 1}
    )
    assert called.stop_reason == "tool_use"
    use = called.content[0]
    assert (use.type, use.name) == ("tool_use", "set_light")
    assert set(use.input) == {"room", "on"}
    with client.messages.stream(
        **settings, messages=SAY, tool_choice=forced, extra_body={"seed": 1}
    ) as stream:
        assert stream.get_final_message().content[0].input == use.input
    result = {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": [{"type": "text", "text": "ok"}],
    }
    more = [
        *SAY,
        {"role": "assistant", "content": [use.model_dump()]},
        {"role": "user", "content": [result, {"type": "text", "text": "Thank you."}]},
    ]
    answer = client.messages.create(**settings, messages=more, extra_body=GREEDY)
    assert answer.content[0].type == "text"


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"tool_choice": {"type": "sometimes"}},
        {"tool_choice": {"type": "tool", "name": "none such"}, "tools": [TOOL]},
        {"tools": [{"name": "x", "input_schema": 3}]},
        {
            "tools": [{"name": "x", "input_schema": {"type": "wizard"}}],
            "tool_choice": {"type": "any"},
        },
    ],
)
def test_what_is_wrong_is_told_in_their_shape(server: Server, change: dict[str, object]) -> None:
    body = {"max_tokens": 4, "messages": SAY, **change}
    status, answer, _ = server.ask("/v1/messages", body)
    assert status == 400, answer
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"].endswith(".")
