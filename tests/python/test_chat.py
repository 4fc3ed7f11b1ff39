"""Chat templates: equal to transformers' own rendering, confined in time, memory and length."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from awq_edge import Model, chat
from awq_edge.chat import chat_prompt, render_chat
from awq_edge.errors import AwqEdgeError, InvalidArgumentError
from awq_edge.tokenizer import Tokenizer

HI = [{"role": "user", "content": "Hi"}]
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"

# ---- equal to transformers -----------------------------------------------------------------

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"role": "system", "content": "Be <brief> & kind, é."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "  Hello!\n"},
        {"role": "user", "content": "Bye 🦙"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Ōsaka", "days": 2}},
                }
            ],
        },
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "Rain.", "reasoning": "It said so."},
        {"role": "user", "content": "Thanks"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city <now>.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

# Forms that templates of real models have (ChatML, Llama 2 and 3, Mistral, Gemma, Qwen with tools,
# DeepSeek with reasoning), and the parts of the language that they use.
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "(message['content'] or '') + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = system_message + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content|string|trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content|string|trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{- bos_token }}\n{%- if not tools is defined %}\n"
    "    {%- set tools = none %}\n{%- endif %}\n{%- if tools is not none %}\n"
    "    {%- for t in tools %}\n        {{- t | tojson(indent=4) }}\n"
    '        {{- "\\n\\n" }}\n    {%- endfor %}\n{%- endif %}\n'
    "{%- for message in messages %}\n"
    "    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}\n"
    "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "        {{- message['content'] | trim if message['content'] is string else 'parts' }}\n"
    "    {%- elif 'tool_calls' in message %}\n"
    "        {%- set tool_call = message.tool_calls[0].function %}\n"
    "        {{- tool_call.name }}{{- tool_call.arguments | tojson }}\n"
    "        {%- for name, value in tool_call.arguments | items %}\n"
    "            {{- name ~ '=' ~ value }}{%- if not loop.last %}, {% endif %}\n"
    "        {%- endfor %}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant' }}\n{%- endif %}\n",
    "gemma": "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% if message['content'] is iterable and "
    "message['content'] is not string %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] | trim }}{% endif %}"
    "{% endfor %}{% else %}{{ message['content'] | trim }}{% endif %}{% endfor %}",
    "qwen": "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n"
    '        {{- "\\n" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n{%- endif %}\n'
    "{%- set ns = namespace(last=0, seen=false) %}\n"
    "{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    '    {%- if not ns.seen and message.role == "user" %}\n'
    "        {%- set ns.seen = true %}\n        {%- set ns.last = index %}\n    {%- endif %}\n"
    "{%- endfor %}\n{{- ns.last }}\n{%- for message in messages %}\n"
    "    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}\n"
    "        {{- '<think>' + message.reasoning_content.strip('\\n') + '</think>' }}\n"
    "    {%- endif %}\n    {%- if message.tool_calls %}\n"
    "        {%- for tool_call in message.tool_calls %}\n"
    "            {%- if tool_call.function is defined %}\n"
    "                {%- set tool_call = tool_call.function %}\n            {%- endif %}\n"
    "            {{- tool_call.arguments | tojson(ensure_ascii=true) }}\n        {%- endfor %}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}\n"
    "    {{- '<think>\\n\\n</think>\\n\\n' }}\n{%- endif %}\n",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{% set inside = 1 %}{{ m.content }}{% endgeneration %}{{ inside is defined }}{% endif %}"
    "{% endfor %}",
    "none": "{{ tools is none }}{{ documents is none }}{{ tools }}{{ nothing is defined }}"
    "{{ documents != none }}",
    "tojson": "{{ {'b': 1, 'a': '<é>'} | tojson(separators=(',', ':')) }}"
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=2, ensure_ascii=True) }}"
    "{{ messages | tojson }}",
    "special": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}"
    "{{ image_token }}",
    "controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
    "{% if i == 5 %}{% break %}{% endif %}{{ i }}{% else %}none{% endfor %}"
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}"
    "{{ f(1) }}{% call f(2) %}!{% endcall %}"
    "{% for c in [[1, [2]], 3] recursive %}{{ loop(c) if c is iterable else c }}{% endfor %}",
    "blanks": "  {% if true %}\n  x\n  {% endif %}\n\n{# remark #}\n  y\n",
    "filters": "{{ messages | map(attribute='role') | unique | join('/') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ 'a b' | title }}{{ 'x' | center(7) }}{{ [3, 1] | sort }}{{ '%s-%04d' | format('a', 7) }}"
    "{{ 1.5 | round | int }}{{ 'é' | upper }}{{ '<' | e }}{{ messages[0] | dictsort | first }}"
    "{{ 'a\nb' | indent(2) }}{{ '{:>5}'.format('z') }}{{ 'abc'[::-1] }}{{ 'a,b'.split(',') }}"
    "{{ dict(a=1).items() | list }}{{ dict.fromkeys(['k']) }}{{ namespace(self=3).self }}",
    "date": "{{ strftime_now('%Y-%m-%d')|length }}",
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_equal_to_transformers(name: str, conversation: str) -> None:
    """With and without tools, documents and the opening of the next turn; errors as errors."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    normalised = getattr(utils, "_normalize_chat_messages", None)
    if normalised is None:
        pytest.skip("an older transformers passes messages on otherwise")
    messages = CONVERSATIONS[conversation]
    tokens = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "image_token": "<image>",
    }
    for settings in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS, "enable_thinking": False},
        {"add_generation_prompt": True, "documents": [{"title": "t", "text": "x"}]},
    ):
        try:
            (right,), _ = utils.render_jinja_template(
                [normalised(messages)], chat_template=TEMPLATES[name], **settings, **tokens
            )
        except Exception:
            with pytest.raises(InvalidArgumentError, match="chat template"):
                render_chat(TEMPLATES[name], messages, **settings, **tokens)
            continue
        assert render_chat(TEMPLATES[name], messages, **settings, **tokens) == right


def test_values_reach_a_template_as_data() -> None:
    """Objects of a program are data, or their type's name; never something to call."""

    @dataclasses.dataclass
    class Part:
        text: str

    class Opaque:
        def secret(self) -> str:
            return "called"

    values = {"n": (1, 2.5, True, None), 3: [Part("p")], "o": Opaque()}
    assert (
        render_chat("{{ v }}{{ v.o.secret is defined }}", HI, v=values)
        == "{'n': (1, 2.5, True, None), 3: [{'text': 'p'}], 'o': '<Opaque>'}False"
    )
    with pytest.raises(InvalidArgumentError, match="table"):
        render_chat(TURNS, ["Hi"])  # type: ignore[list-item]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidArgumentError, match="deep"):
        render_chat(TURNS, HI, v=deep)


# ---- which template counts -----------------------------------------------------------------


def file_entries(**entries: object) -> dict[str, object]:
    return {
        "tokenizer.chat_template": "D{{ bos_token }}{{ pad_token }}",
        "awq_edge.tokenizer.special_tokens": json.dumps({"bos_token": "<s>", "pad_token": "<p>"}),
        **entries,
    }


class NoTokenizer(Tokenizer):
    def __init__(self) -> None:
        self.bos_token_id, self.eos_token_ids = 1, (2,)

    def token_text(self, token: int | None) -> str:
        return "" if token is None else f"<{token}>"


def test_named_templates() -> None:
    named = json.dumps({"tool_use": "T", "rag": "R{{ documents|length }}"})
    entries = file_entries(**{"awq_edge.tokenizer.chat_templates": named})
    assert sorted(chat.templates(entries)) == ["default", "rag", "tool_use"]
    assert chat_prompt(entries, NoTokenizer(), HI) == "D<s><p>"
    assert chat_prompt(entries, NoTokenizer(), HI, tools=[]) == "T"
    assert chat_prompt(entries, NoTokenizer(), HI, template="rag", documents=[{}]) == "R1"
    with pytest.raises(InvalidArgumentError, match="but default, rag, tool_use"):
        chat_prompt(entries, NoTokenizer(), HI, template="x")
    del entries["tokenizer.chat_template"]
    with pytest.raises(InvalidArgumentError, match="'default', but rag, tool_use: name one"):
        chat_prompt(entries, NoTokenizer(), HI)


def test_files_of_older_releases_and_damaged_ones() -> None:
    older = {
        "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}",
        "tokenizer.ggml.eos_token_id": 2,
    }
    assert chat_prompt(older, NoTokenizer(), HI) == "<1><2>"
    assert chat_prompt(older, NoTokenizer(), HI, bos_token="B") == "B<2>"
    for text in ("{", "[1]", "[" * 100000):
        with pytest.raises(InvalidArgumentError, match="special_tokens is no table"):
            entries = file_entries(**{"awq_edge.tokenizer.special_tokens": text})
            chat_prompt(entries, NoTokenizer(), HI)


def test_model_without_chat_template_says_so(stories: Model) -> None:
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        stories.chat_prompt(HI)


def test_chat_tokens_are_the_template_s_alone(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BOS stands there where the template writes it, and nowhere else."""
    bos = stories.tokenizer.bos_token_id
    assert stories.tokenize("x")[0] == bos
    for template, begins in ((TURNS, False), ("{{ bos_token }}" + TURNS, True)):
        entries = {**stories.metadata, "tokenizer.chat_template": template}
        monkeypatch.setattr(stories, "metadata", entries)
        text = stories.chat_prompt(HI)
        tokens = stories.chat_tokens(HI)
        assert tokens == stories.tokenize(text, add_bos=False)
        assert (tokens[0] == bos, tokens.count(bos)) == (begins, int(begins))


# ---- the sandbox ---------------------------------------------------------------------------


def test_refusal_is_a_sentence() -> None:
    with pytest.raises(InvalidArgumentError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", [])


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ messages[0].content.x.y }}",
        "{{ 1 // 0 }}",
        "{{ 'x' | nothing }}",
        "{% include 'x' %}",
    ],
)
def test_broken_template_is_a_sentence(template: str) -> None:
    with pytest.raises(InvalidArgumentError, match="chat template"):
        render_chat(template, HI)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace(_x=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.__subclasses__() }}",
    ],
)
def test_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(InvalidArgumentError):
        render_chat(template, HI)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "power": "{{ ((9**9999)**9999) // 7 }}",
}
SWELLING = {
    "doubling": "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "times": "{{ 'x' * 10**11 }}",
    "list": "{{ ([1] * 10**9) | length }}",
    "format": "{{ '%099999999999d' % 1 }}",
    "str.format": "{{ '{:>99999999999}'.format(1) }}",
    "center": "{{ 'x' | center(10**11) }}",
    "ljust": "{{ 'x'.ljust(10**11) }}",
    "indent": "{{ {'a': 1} | tojson(indent=10**11) }}",
    "replace": "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
    "to_bytes": "{{ (1).to_bytes(10**11, 'big') }}",
    "batch": "{{ [1] | batch(10**11, 'x') | list }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


def test_endless_templates_end() -> None:
    """By the processor's time; the next prompt is as good as the first."""
    for template in ENDLESS.values():
        with pytest.raises(InvalidArgumentError, match="computes for more than 1 s"):
            render_chat(template, HI)
        assert render_chat(TURNS, HI) == "<|user|>Hi"


def test_a_process_that_does_not_get_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: one that stands still uses no processor's time."""
    render_chat(TURNS, HI)
    assert chat._worker._process is not None
    chat._worker._process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(chat, "_WALL_SECONDS", 0.2)
        with pytest.raises(InvalidArgumentError, match="very busy"):
            render_chat(TURNS, HI)
    assert render_chat(TURNS, HI) == "<|user|>Hi"


@pytest.mark.parametrize("name", SWELLING)
def test_swelling_templates_end(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"(more than a prompt may hold|computes for)"):
        render_chat(SWELLING[name], HI)
    assert render_chat(TURNS, HI) == "<|user|>Hi"


def test_reasons_are_short() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        render_chat("{{ raise_exception('x' * 10**6) }}", HI)
    assert len(str(error.value)) < 400


def test_one_template_leaves_nothing_for_the_next() -> None:
    render_chat("{% set bos_token = 'changed' %}{% set x = 1 %}{{ bos_token }}", HI, bos_token="b")
    assert render_chat("{{ bos_token is defined }}{{ x is defined }}", HI) == "FalseFalse"


# ---- the process ---------------------------------------------------------------------------


def test_threads_and_forks() -> None:
    """Every thread and every child of a fork gets its own answers."""
    results: dict[int, str] = {}

    def ask(number: int) -> None:
        results[number] = render_chat("{{ n }}" * 3, HI, n=number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) * 3 for number in range(8)}

    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)

    def child() -> None:
        send.send((render_chat("{{ n }}", HI, n="child"), chat._worker._process.pid))

    with chat._worker._lock:  # held by another thread while the program forks
        process = fork.Process(target=child)
        process.start()
    assert chat._worker._process is not None
    assert receive.poll(120)
    text, pid = receive.recv()
    process.join(120)
    assert text == "child" and pid != chat._worker._process.pid
    assert render_chat(TURNS, HI) == "<|user|>Hi"  # the parent's process still answers the parent


def test_killed_process_is_started_again() -> None:
    render_chat(TURNS, HI)
    assert chat._worker._process is not None
    chat._worker._process.kill()
    chat._worker._process.wait()
    assert render_chat(TURNS, HI) == "<|user|>Hi"


def test_process_that_cannot_start_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat._worker.close()
    monkeypatch.setattr("sys.executable", str(tmp_path / "none"))
    with pytest.raises(AwqEdgeError, match="cannot be started"):
        render_chat(TURNS, HI)
    (tmp_path / "none").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "none").chmod(0o700)
    with pytest.raises(AwqEdgeError, match="ended at once"):
        render_chat(TURNS, HI)


def test_chat_template_of_a_real_model(assets: Path) -> None:
    text = (assets / "tokenizers/smollm/tokenizer_config.json").read_text(encoding="utf-8")
    prompt = render_chat(json.loads(text)["chat_template"], HI)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
