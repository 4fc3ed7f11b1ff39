"""OpenAI's interfaces, with the official client and by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import Server, sent_events

openai = pytest.importorskip("openai")

SAY = [{"role": "user", "content": "Good morning! What is your name?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> object:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def test_a_chat_is_what_python_gives(client: object, chat_file: Path) -> None:
    from awq_edge import Model

    answer = client.chat.completions.create(
        model="novels-chat", messages=SAY, seed=7, max_tokens=40, temperature=0.9
    )
    with Model.open(chat_file, threads=2) as model:
        prompt = model.chat_tokens(SAY)
        alone = model.generate(prompt, seed=7, max_tokens=40, temperature=0.9)
        assert answer.choices[0].message.content == alone.text()
    assert answer.model == "novels-chat"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.choices[0].finish_reason == {"eos": "stop", "length": "length"}[alone.stop_reason]


def test_a_stream_says_the_same_in_pieces(client: object) -> None:
    settings = dict(model="any", messages=SAY, seed=3, max_tokens=30, n=3, temperature=1.5)
    whole = client.chat.completions.create(**settings)
    texts, finish, usage = ["", "", ""], ["", "", ""], None
    stream = client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        if not chunk.choices:
            usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) == 3
    assert usage.completion_tokens == whole.usage.completion_tokens
    # Each of several answers is what its own seed gives alone.
    second = client.chat.completions.create(**{**settings, "n": 1, "seed": 4})
    assert second.choices[0].message.content == texts[1]


def test_the_wire_is_as_clients_expect_it(server: Server) -> None:
    body = {"messages": SAY, "stream": True, "max_tokens": 4, "seed": 1}
    events = sent_events(server.url + "/v1/chat/completions", body)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[-1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    body["stream_options"] = {"include_usage": True}
    events = sent_events(server.url + "/v1/chat/completions", body)
    last = json.loads(events[-2])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_logprobs_stop_and_bias(client: object) -> None:
    answer = client.chat.completions.create(
        model="m", messages=SAY, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
    )
    entries = answer.choices[0].logprobs.content
    text = answer.choices[0].message.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == text
    for entry in entries:
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert entry.logprob >= entry.top_logprobs[1].logprob
    word = text.split()[2]
    cut = client.chat.completions.create(
        model="m", messages=SAY, temperature=0, max_tokens=12, stop=[word]
    )
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"


def test_contents_and_roles_of_every_kind_are_read(client: object) -> None:
    parts = [{"type": "text", "text": "Good morning!"}]
    plain = [
        {"role": "system", "content": "You are a sailor."},
        {"role": "user", "content": "Good morning!"},
    ]
    other = [
        {"role": "developer", "content": plain[0]["content"]},
        {"role": "user", "content": parts},
    ]
    answers = [
        client.chat.completions.create(model="m", messages=m, seed=5, max_completion_tokens=20)
        for m in (plain, other)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_an_answer_that_was_begun_goes_on(client: object) -> None:
    whole = client.chat.completions.create(model="m", messages=SAY, temperature=0, max_tokens=30)
    text = whole.choices[0].message.content
    begun = " ".join(text.split()[:4])
    rest = client.chat.completions.create(
        model="m",
        messages=[*SAY, {"role": "assistant", "content": begun}],
        temperature=0,
        max_tokens=30,
    )
    assert (begun + rest.choices[0].message.content).split() == text.split()


def test_models_are_listed(client: object, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["novels-chat"]
    assert client.models.retrieve("novels-chat").context_length == 1024


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_what_is_wrong_is_named(server: Server, change: dict[str, object], param: str) -> None:
    body = {"messages": SAY, "max_tokens": 2, **change}
    status, answer, _ = server.ask("/v1/chat/completions", body)
    assert status == 400, answer
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_prompt_that_is_too_long_says_the_numbers(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "long " * 2000}]}
    status, answer, _ = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "1024" in answer["error"]["message"]


def test_texts_are_continued(client: object, chat_file: Path) -> None:
    from awq_edge import Model

    prompts = ["It was a dark", "The old house"]
    settings = dict(model="m", seed=9, max_tokens=12, temperature=0.8, n=2)
    answer = client.completions.create(prompt=prompts, **settings)
    with Model.open(chat_file, threads=1) as model:
        for choice in answer.choices:
            seed, prompt = 9 + choice.index % 2, prompts[choice.index // 2]
            alone = model.generate(prompt, seed=seed, max_tokens=12, temperature=0.8)
            assert choice.text == alone.text()
        ids = [model.tokenize(prompt) for prompt in prompts]
    by_ids = client.completions.create(prompt=ids, **settings)
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in answer.choices]
    texts = ["", "", "", ""]
    for chunk in client.completions.create(prompt=prompts, **settings, stream=True, echo=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [prompts[choice.index // 2] + choice.text for choice in answer.choices]
    short = client.completions.create(model="m", prompt="It", logprobs=2, temperature=0)
    assert short.usage.completion_tokens <= 16
    table = short.choices[0].logprobs
    assert "".join(table.tokens) == short.choices[0].text
    assert all(len(top) == 2 for top in table.top_logprobs)
    assert table.text_offset[1] == len(table.tokens[0])


def test_responses_and_their_events(client: object) -> None:
    settings = dict(model="m", input=SAY[0]["content"], max_output_tokens=20, temperature=0.0)
    whole = client.responses.create(**settings)
    text = whole.output_text
    chat = client.chat.completions.create(model="m", messages=SAY, max_tokens=20, temperature=0.0)
    assert text == chat.choices[0].message.content
    events = list(client.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert kinds[-1] == f"response.{whole.status}"
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == text == events[-1].response.output_text
    tool = {
        "type": "function",
        "name": "ring",
        "parameters": {
            "type": "object",
            "properties": {"bell": {"enum": ["front", "back"]}},
            "required": ["bell"],
            "additionalProperties": False,
        },
    }
    called = client.responses.create(
        model="m", input="Ring.", tools=[tool], tool_choice="required", temperature=0.0
    )
    call = called.output[0]
    assert (call.type, call.name) == ("function_call", "ring")
    assert json.loads(call.arguments)["bell"] in ("front", "back")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rung"}
    more = [{"role": "user", "content": "Ring."}, call, result]
    assert client.responses.create(model="m", input=more, max_output_tokens=5).output


def test_texts_and_ids(server: Server) -> None:
    ids = server.ask("/tokenize", {"content": "Good morning"})[1]["tokens"]
    assert server.ask("/detokenize", {"tokens": ids})[1]["content"] == "Good morning"
    assert server.ask("/detokenize", {"tokens": [10**6]})[0] == 400


def test_an_echo_says_how_likely_the_prompt_was(client: object, chat_file: Path) -> None:
    import numpy as np

    from awq_edge import Model

    prompts = ["It was a dark night", "The garden"]
    settings = dict(model="m", prompt=prompts, temperature=0.0, echo=True, logprobs=2, n=2)
    whole = client.completions.create(**settings, max_tokens=3)
    only = client.completions.create(**settings, max_tokens=0)
    with Model.open(chat_file, threads=1) as model:
        for choice, short in zip(whole.choices, only.choices):
            prompt = prompts[choice.index // 2]
            ids = model.tokenize(prompt)
            drawn = model.generate(prompt, temperature=0.0, max_tokens=3)
            assert choice.text == prompt + drawn.text()
            assert short.text == prompt
            logits = model.logits([*ids, *drawn.tokens]).astype(np.float64)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            expected = [row[token] for row, token in zip(logits, [*ids, *drawn.tokens][1:])]
            table = choice.logprobs
            assert table.token_logprobs[0] is None and table.top_logprobs[0] is None
            assert np.allclose(table.token_logprobs[1:], expected, atol=1e-4)
            assert len(table.tokens) == len(table.text_offset) == len(ids) + len(drawn.tokens)
            assert all(len(top) <= 2 for top in table.top_logprobs[1:])
            assert table.text_offset == sorted(table.text_offset)
            assert short.logprobs.tokens == table.tokens[: len(ids)]
            assert short.logprobs.token_logprobs == table.token_logprobs[: len(ids)]
    streams: dict[int, list[object]] = {i: [] for i in range(4)}
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(**settings, max_tokens=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.logprobs:
            streams[choice.index] += choice.logprobs.token_logprobs
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert streams[choice.index] == choice.logprobs.token_logprobs


def test_a_gap_is_filled_by_models_that_were_trained_for_it(
    server: Server, assets: Path, tmp_path: Path
) -> None:
    from awq_edge import Model
    from awq_edge.fill_in_middle import fill_prompt

    body = {"prompt": "def f(x):\n    return ", "suffix": "\n", "max_tokens": 8, "temperature": 0}
    status, answer, _ = server.ask("/v1/completions", body)
    assert status == 400
    assert answer["error"]["param"] == "suffix" and "no markers" in answer["error"]["message"]
    assert server.ask("/v1/completions", {**body, "prompt": [1, 2]})[0] == 400
    path = tmp_path / "starcoder.awq.gguf"
    subprocess.run(
        [
            *(sys.executable, "-m", "awq_edge.cli.main", "convert"),
            *(assets / "models/novels-starcoder", "--method", "rtn", "--quiet", "-o", path),
        ],
        check=True,
        timeout=300,
    )
    started = Server(path, "--cache-size", "0")
    try:
        filled = started.ask("/v1/completions", body)[1]
        other = started.ask("/v1/completions", {**body, "suffix": " + 1\n"})[1]
        ollama = {**body, "options": {"temperature": 0, "num_predict": 8}, "stream": False}
        generated = started.ask("/api/generate", ollama)[1]
    finally:
        started.stop()
    with Model.open(path, threads=1) as model:
        for found, suffix in ((filled, "\n"), (other, " + 1\n")):
            ids, ends = fill_prompt(
                model.tokenizer,
                body["prompt"],
                suffix,
                lambda text: model.text_tokens(text, add_bos=False),
            )
            assert ends
            expected = model.generate(ids, temperature=0, max_tokens=8).text()
            assert found["usage"]["prompt_tokens"] == len(ids)
            assert found["choices"][0]["text"] == expected
        assert generated["response"] == filled["choices"][0]["text"]


def test_health_and_metrics(server: Server) -> None:
    status, health, _ = server.ask("/health")
    assert status == 200
    assert health["status"] == "ok"
    assert health["models"] == ["novels-chat"]
    for name in ("tokens_per_second", "memory_bytes", "temperature_celsius", "throttled"):
        assert name in health
    before = server.metric("tokens_total")
    server.ask("/v1/chat/completions", {"messages": SAY, "max_tokens": 5, "temperature": 0})
    assert server.metric("tokens_total") == before + 5
    text = server.ask("/metrics")[1]
    for line in text.splitlines():
        if line.startswith("# TYPE") and line.endswith("counter"):
            assert line.split()[2].endswith("_total")


def test_a_client_that_leaves_ends_its_text(server: Server) -> None:
    import http.client

    for stream in (True, False):
        before = server.metric('texts_total{reason="cancelled"}') if stream is False else None
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = {
            "messages": SAY,
            "stream": stream,
            "temperature": 3.0,
            "top_k": 0,
            "min_p": 0,
            "logit_bias": {"4097": -100, "2": -100},
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        if stream:
            connection.getresponse().read(200)
        else:
            while not server.ask("/health")[1]["live"]:
                time.sleep(0.005)
        connection.close()
        deadline = time.monotonic() + 20
        while server.ask("/health")[1]["live"] and time.monotonic() < deadline:
            time.sleep(0.01)
        after = server.metric('texts_total{reason="cancelled"}')
        assert after == (before or 0) + 1 if before is not None else after >= 1
