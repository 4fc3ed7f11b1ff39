"""Functions with templates that know them: official clients, there and back, whole and streamed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server

from awq_edge import Model

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\\n Functions:\\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
    {{- 'Call one as BEGIN{"name": "", "ARGUMENTS": {}}END.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{- '<|im_start|>user\\n <tool_response>' + message['content'] + '</tool_response>' }}
    {%- elif message['tool_calls'] %}
        {{- '<|im_start|>assistant\\n ' }}
        {%- for call in message['tool_calls'] %}
            {{- 'BEGIN{"name": "' + call['function']['name'] + '", "ARGUMENTS": ' }}
            {{- call['function']['arguments'] | tojson + '}END' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n ' + message['content'] | trim }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# What each kind of template calls by: before a call, behind it, the name of its arguments.
KINDS = {
    "hermes": ("<tool_call>", "</tool_call>", "arguments"),
    "llama3": ("<|python_tag|>", "", "parameters"),
    "phi": ("<|tool_call|>[", "]<|/tool_call|>", "arguments"),
}
VALUE = {"type": "object", "properties": {"value": {"type": "integer", "minimum": 1, "maximum": 9}}}
PARAMETERS = {**VALUE, "required": ["value"], "additionalProperties": False}
FUNCTIONS = [
    {"name": name, "description": f"{name} it", "parameters": PARAMETERS}
    for name in ("dim", "heat")
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
ASKED = {"role": "user", "content": "Please do something."}


@pytest.fixture(scope="module", params=KINDS)
def knowing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server with the chat model, whose template knows functions in one of the ways."""
    begin, end, arguments = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(ROOT / "examples/novels-chat", folder / "model")
    template = TEMPLATE.replace("BEGIN", begin).replace("END", end).replace("ARGUMENTS", arguments)
    (folder / "model/chat_template.jinja").write_text(template)
    file = folder / "tools.awq.gguf"
    command = [sys.executable, "-m", "awq_edge.cli.main", "convert", folder / "model"]
    subprocess.run(
        [*command, "--method", "rtn", "--quiet", "-o", file],
        check=True,
        timeout=300,
    )
    server = Server(file, "--cache-size", "0")
    yield server, file
    server.stop()


def prompt_tokens(file: Path, messages: list[dict[str, Any]], tools: Any = TOOLS) -> int:
    """Of the template with these messages: what the server must have read."""
    with Model.open(file, threads=1) as model:
        return len(model.chat_tokens(messages, tools=tools))


def history(name: str, arguments: dict[str, Any], result: str) -> list[dict[str, Any]]:
    call = {"type": "function", "id": "c", "function": {"name": name, "arguments": arguments}}
    return [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
    ]


def test_openai(knowing: tuple[Server, Path]) -> None:
    openai = pytest.importorskip("openai")
    server, file = knowing
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    settings: dict[str, Any] = {"model": "m", "tools": TOOLS, "max_tokens": 60, "seed": 2}
    whole = client.chat.completions.create(messages=[ASKED], tool_choice="required", **settings)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.prompt_tokens == prompt_tokens(file, [ASKED])
    call = message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name in ("dim", "heat") and 1 <= arguments["value"] <= 9
    streamed = ["", ""]
    for chunk in client.chat.completions.create(
        messages=[ASKED], tool_choice="required", stream=True, **settings
    ):
        assert not chunk.choices[0].delta.content
        for part in chunk.choices[0].delta.tool_calls or ():
            streamed[0] += part.function.name or ""
            streamed[1] += part.function.arguments or ""
    assert streamed == [call.function.name, call.function.arguments]
    result = {"role": "tool", "tool_call_id": call.id, "content": "done: it is 7 now"}
    later = [ASKED, message.model_dump(exclude_none=True), result]
    for stream in (False, True):
        extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = client.chat.completions.create(messages=later, **settings, **extra)
        last = list(answer)[-1] if stream else answer
        expected = history(call.function.name, arguments, "done: it is 7 now")
        assert last.usage.prompt_tokens == prompt_tokens(file, expected)


def test_anthropic(knowing: tuple[Server, Path]) -> None:
    anthropic = pytest.importorskip("anthropic")
    server, file = knowing
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tools = [
        {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
        for one in FUNCTIONS
    ]
    settings: dict[str, Any] = {
        "model": "m",
        "max_tokens": 60,
        "tools": tools,
        "tool_choice": {"type": "any"},
        "messages": [ASKED],
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**settings)
    assert whole.stop_reason == "tool_use"
    (call,) = (block for block in whole.content if block.type == "tool_use")
    assert call.name in ("dim", "heat") and 1 <= call.input["value"] <= 9
    with client.messages.stream(**settings) as stream:
        final = stream.get_final_message()
    (again,) = (block for block in final.content if block.type == "tool_use")
    assert (again.name, again.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    answer = client.messages.create(
        **{
            **settings,
            "tool_choice": {"type": "auto"},
            "messages": [
                ASKED,
                {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
                {"role": "user", "content": [result]},
            ],
        }
    )
    read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert read == prompt_tokens(file, history(call.name, call.input, "done"))


def test_ollama(knowing: tuple[Server, Path]) -> None:
    """Its interface cannot demand a call: a call of the past and its result are read."""
    ollama = pytest.importorskip("ollama")
    server, file = knowing
    client = ollama.Client(host=server.url)
    later = history("dim", {"value": 3}, "done")
    # It leaves out what it does not know of a schema.
    sent_tools = [ollama.Tool(**tool).model_dump(exclude_none=True) for tool in TOOLS]
    for said in ([ASKED], later):
        sent = json.loads(json.dumps(said))
        for message in sent:
            for call in message.get("tool_calls", ()):
                del call["type"], call["id"]
        settings: dict[str, Any] = {
            "model": "m",
            "messages": sent,
            "tools": TOOLS,
            "options": {"seed": 4, "num_predict": 12},
        }
        whole = client.chat(**settings)
        assert whole.prompt_eval_count == prompt_tokens(file, said, sent_tools)
        parts = list(client.chat(**settings, stream=True))
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
