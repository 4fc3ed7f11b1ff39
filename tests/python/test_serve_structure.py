"""Answers with a form: JSON schemas that always hold, and calls of functions in every format."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import pytest
from serving import Server

from awq_edge.reasoning import ReasoningSplitter
from awq_edge.serve.answers import Delta, ToolCallPart
from awq_edge.serve.chat_reader import ChatReader
from awq_edge.serve.texts import Piece
from awq_edge.serve.tool_formats import HERMES, ToolFormat, emulated, tool_format
from awq_edge.serve.tool_reader import ToolReader

MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", is_list=True)
PHI = ToolFormat("phi", "<|tool_call|>", "<|/tool_call|>", is_list=True)
LLAMA = ToolFormat("llama3", "<|python_tag|>", bare=True, arguments="parameters")

CALL = '{"name": "f", "arguments": {"a": [1, {"b": "}\\" <"}], "c": null}}'
ARGUMENTS = '{"a": [1, {"b": "}\\" <"}], "c": null}'


def read(form: ToolFormat, text: str, step: int) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls, from a text that comes in parts of ``step`` characters."""
    reader = ToolReader(form)
    parts = []
    for begin in range(0, len(text), step):
        parts += reader.add(text[begin : begin + step])
    parts += reader.finish()
    said, calls, ids = "", [], set()
    for part in parts:
        if isinstance(part, str):
            said += part
            continue
        assert isinstance(part, ToolCallPart)
        if part.id:
            assert part.index == len(calls)
            ids.add(part.id)
            calls.append((part.name, part.arguments))
        else:
            name, arguments = calls[part.index]
            calls[part.index] = (name, arguments + part.arguments)
    assert len(ids) == len(calls)
    assert reader.called == bool(calls)
    return said, calls


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (HERMES, "Just text with < and <tool", "Just text with < and <tool", []),
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [("f", ARGUMENTS)]),
        (
            HERMES,
            f"Well.\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
            "Well.",
            [("f", ARGUMENTS)] * 2,
        ),
        (HERMES, f"<tool_call>{CALL}", "", [("f", ARGUMENTS)]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        (
            HERMES,
            '<tool_call>{"arguments": {"name": "x"}, "name": "f"}</tool_call>',
            "",
            [("f", '{"name": "x"}')],
        ),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
        (HERMES, "<tool_call> no call", "<tool_call> no call", []),
        (HERMES, '<tool_call>{"x": 1}</tool_call>', '{"x": 1}', []),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("f", ARGUMENTS)] * 2),
        (MISTRAL, "[TOOL_CALLS", "[TOOL_CALLS", []),
        (PHI, f"So: <|tool_call|>[{CALL}]<|/tool_call|>", "So:", [("f", ARGUMENTS)]),
        (
            LLAMA,
            '{"name": "f", "parameters": {"q": "a"}}',
            "",
            [("f", '{"q": "a"}')],
        ),
        (
            LLAMA,
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
            "",
            [("f", "{}"), ("g", "{}")],
        ),
        (LLAMA, "A {brace} is text", "A {brace} is text", []),
    ],
)
def test_calls_are_read_in_every_format(
    form: ToolFormat, text: str, said: str, calls: list[tuple[str, str]], step: int
) -> None:
    assert read(form, text, step) == (said, calls)


def test_the_format_is_that_of_the_template() -> None:
    for template, name in (
        ("{{ tools }} <tool_call>", "hermes"),
        ("{{ tools }} [TOOL_CALLS]", "mistral"),
        ("{{ tools }} <|tool_call|>", "granite"),
        ("{{ tools }} <|tool_call|> <|/tool_call|>", "phi"),
        ("{{ tools }} <|python_tag|>", "llama3"),
        ('{{ tools }} {"name": n, "parameters": p}', "json"),
    ):
        found = tool_format(template)
        assert found is not None
        assert found.name == name
    assert tool_format("{{ messages }}") is None


def test_a_template_without_tools_is_told_in_the_system_message() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "done"},
    ]
    written = emulated(messages, tools)
    assert [message["role"] for message in written] == ["system", "user", "assistant", "user"]
    assert '"name": "f"' in written[0]["content"]
    assert written[2]["content"] == f"<tool_call>\n{json.dumps(function)}\n</tool_call>"
    assert "done" in written[3]["content"]


def test_reasoning_calls_and_text_are_told_apart() -> None:
    reader = ChatReader(ReasoningSplitter([("<think>", "</think>")]), ToolReader(HERMES))
    deltas: list[Delta] = []
    for character in f"<think>so <tool_call> is it</think>Yes. <tool_call>{CALL}</tool_call>":
        deltas += reader.read(0, Piece(character, (1,)))
    deltas += reader.finish(0, "eos")
    assert "".join(delta.reasoning for delta in deltas) == "so <tool_call> is it"
    assert "".join(delta.content for delta in deltas).strip() == "Yes."
    calls = [delta.call for delta in deltas if delta.call is not None]
    assert "".join(call.arguments for call in calls) == ARGUMENTS
    assert deltas[-1].finish == "tool_calls"


# ---- schemas -------------------------------------------------------------------------------------


def random_schema(random_: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose shortest answers are short enough for a model that rambles."""
    kinds = ["integer", "boolean", "null", "enum", "string", "const", "number"]
    kinds += ["object", "object", "array", "anyOf"] if depth < 3 else []
    kind = random_.choice(kinds)
    if kind == "object":
        properties = {
            f"p{i}": random_schema(random_, depth + 1) for i in range(random_.randint(0, 3))
        }
        required = [name for name in properties if random_.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if kind == "array":
        low = random_.randint(0, 2)
        high = low + random_.randint(0, 2)
        items = random_schema(random_, depth + 1)
        return {"type": "array", "items": items, "minItems": low, "maxItems": high}
    if kind == "anyOf":
        return {"anyOf": [random_schema(random_, depth + 1) for _ in range(2)]}
    if kind == "enum":
        return {"enum": random_.sample(["a", "b é", 3, None, True, "x\n"], 3)}
    if kind == "const":
        return {"const": random_.choice(["k", 12, False])}
    if kind == "string":
        return {"type": "string", "maxLength": random_.randint(0, 6)}
    if kind == "integer":
        low = random_.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + random_.randint(0, 900)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 9, "multipleOf": 0.5}
    return {"type": kind}


def test_answers_are_always_valid(chat_file: Any) -> None:
    """Random schemas, many at once through the engine: each answer is a sentence of its own."""
    jsonschema = pytest.importorskip("jsonschema")
    from test_serve_engine import Heard

    from awq_edge import GenerationConfig, Model
    from awq_edge.serve.engine import Engine
    from awq_edge.serve.grammar import GrammarConstraint, schema_grammar, token_table
    from awq_edge.serve.texts import Ended, Text

    engine = Engine(parallel=8, most_waiting=1000)
    random_ = random.Random(16)
    schemas = [random_schema(random_) for _ in range(300)]
    with Model.open(chat_file, threads=1, context_length=512) as model:
        prompt = model.chat_tokens([{"role": "user", "content": "Good morning!"}])
        texts = []
        for seed, schema in enumerate(schemas):
            constraint = GrammarConstraint(token_table(model), schema_grammar(schema))
            config = GenerationConfig(max_tokens=400, temperature=1.0, seed=seed)
            texts.append(Text(model, "c", prompt, config, Heard(), constraint=constraint))
        engine.submit(texts)
        for text, schema in zip(texts, schemas):
            heard = text.listener
            assert isinstance(heard, Heard)
            end = heard.end()
            assert isinstance(end, Ended)
            assert end.reason == "eos", (schema, heard.text())
            jsonschema.validate(json.loads(heard.text()), schema)
        engine.stop(5)


NAMED = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}
CLOSED = {**NAMED, "additionalProperties": False}
ONE_OF_THREE = {"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "enforced"),
    [
        (NAMED, CLOSED),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$defs": {"n": NAMED}, "$ref": "#/$defs/n"},
            {"$defs": {"n": CLOSED}, "$ref": "#/$defs/n"},
        ),
        ({**NAMED, "additionalProperties": True}, None),
        ({**NAMED, "patternProperties": {"^c": {"type": "string"}}}, None),
        ({**NAMED, "required": ["c"]}, None),
        ({**NAMED, "minProperties": 3}, None),
        ({"allOf": [NAMED, {"required": ["c"]}]}, None),
        ({"anyOf": [NAMED, {"type": "null"}], "required": ["c"]}, None),
        ({**NAMED, "anyOf": [{"properties": {"c": {}}, "required": ["c"]}]}, None),
        ({"$defs": {"n": NAMED}, "$ref": "#/$defs/n", "properties": {"c": {}}}, None),
        ({"oneOf": [NAMED, {"type": "null"}]}, None),
        ({"not": NAMED}, None),
        ({"type": "object"}, None),
        ({**ONE_OF_THREE, "minItems": 1, "maxItems": 1}, {"enum": [["x"], ["y"], ["z"]]}),
        ({**ONE_OF_THREE, "minItems": 4}, None),
        ({**ONE_OF_THREE, "contains": {"const": "x"}}, None),
        ({"type": "string", "format": "entity_id"}, {"type": "string"}),
        ({"type": "string", "format": "iri"}, None),
        ({"enum": [{"format": "entity_id"}]}, None),
        (
            {**CLOSED, "properties": {"format": {"format": "jinja2"}}},
            {**CLOSED, "properties": {"format": {}}},
        ),
    ],
)
def test_what_is_enforced_is_never_wider(schema: Any, enforced: Any) -> None:
    from awq_edge.serve.grammar import _enforceable

    assert _enforceable(schema) == (schema if enforced is None else enforced)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ever_new_schemas_take_no_more_memory(chat_file: Any) -> None:
    """What llguidance's allocator keeps ends after some thousand schemas, 5 MB in all."""
    from awq_edge import Model
    from awq_edge.serve.grammar import GrammarConstraint, schema_grammar, token_table

    def memory() -> int:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

    random_ = random.Random(7)
    with Model.open(chat_file, threads=1) as model:
        table = token_table(model)
        seen = []
        for number in range(5000):
            if number % 1250 == 0:
                seen.append(memory())
            properties = {
                f"name{number}": {"type": "string", "maxLength": 5 + number % 7},
                f"kind{number}": {"enum": [f"a{number}", f"b{number}", number]},
            }
            schema = {"type": "object", "properties": properties, "required": list(properties)}
            constraint = GrammarConstraint(table, schema_grammar(schema))
            drawn: list[int] = []
            for _ in range(8):
                allowed = constraint.allowed(drawn).nonzero()[0]
                drawn.append(int(random_.choice(allowed)))
        seen.append(memory())
    assert seen[2] - seen[0] < 12 << 20, seen
    assert seen[4] - seen[2] < 1 << 20, seen  # 0.4 kB for a schema would be too much


def test_a_schema_that_cannot_be_kept_is_refused(server: Server) -> None:
    for schema in (
        {"type": "wizard"},
        {"$ref": "#/nowhere"},
        {"type": "object", "patternProperties": {"(": {}}},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    ):
        body = {
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        }
        status, answer, _ = server.ask("/v1/chat/completions", body)
        assert status == 400, (schema, answer)
        assert "schema" in answer["error"]["message"]


def test_a_function_is_called_with_the_official_client(server: Server) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {"value": {"type": "integer", "minimum": 1, "maximum": 9}},
                    "required": ["value"],
                    "additionalProperties": False,
                },
            },
        }
        for name in ("dim", "heat")
    ]
    say = [{"role": "user", "content": "Please do something."}]
    settings = dict(model="m", messages=say, tools=tools, max_tokens=60, seed=2, temperature=1.0)
    answer = client.chat.completions.create(**settings, tool_choice="required")
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    call = message.tool_calls[0]
    assert call.function.name in ("dim", "heat")
    assert 1 <= json.loads(call.function.arguments)["value"] <= 9
    name = arguments = finish = ""
    for chunk in client.chat.completions.create(**settings, tool_choice="required", stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert finish == "tool_calls"
    more = [*say, message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    answer = client.chat.completions.create(**{**settings, "messages": more})
    assert answer.choices[0].message.role == "assistant"
    # Null where a text is expected, as some clients send it.
    tools[0]["function"]["description"] = None
    broken = [
        *say,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": None, "function": {"name": "dim", "arguments": "{"}}],
        },
    ]
    status, _, _ = server.ask(
        "/v1/chat/completions", {"messages": [*broken, *say], "tools": tools, "max_tokens": 3}
    )
    assert status == 200
