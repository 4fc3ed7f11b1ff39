"""Chat templates: from messages to the prompt that a model was trained on.

Owns which of a file's templates counts, what it is given, and the process in which it runs
(``template_worker.py``). Refuses tokenizing.

A template is a program by somebody else, and a process of its own is what confines it whole: the
kernel ends it when its time is over, also inside one long operation of C code (``'x' * 10**11``,
``2**(10**9)``, a filter over a huge list), and bounds its memory, where a step limit inside Jinja's
sandbox would have to know every operation that can swell. The process is started, not forked, so
threads and locks of the program do not matter; it lives on for the next prompt, since starting
Python takes a tenth of a second, and half a second on a board.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from awq_edge.errors import AwqEdgeError, InvalidArgumentError
from awq_edge.template_worker import CPU_SECONDS, LENGTH_BYTES, LONGEST_TEXT, READY, Answer
from awq_edge.tokenizer import Tokenizer, eos_token_ids

Message = Mapping[str, Any]

DEFAULT_TEMPLATE = "tokenizer.chat_template"
NAMED_TEMPLATES = "awq_edge.tokenizer.chat_templates"
SPECIAL_TOKENS = "awq_edge.tokenizer.special_tokens"

# Of the clock, for a prompt: who waits for a busy machine is answered within two seconds too.
_WALL_SECONDS = 1.75
# A cold start of Python from a slow SD card.
_START_SECONDS = 60.0
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from awq_edge.template_worker import serve; serve()"
)
# Newer templates read the first name; messages may carry an assistant's reasoning by any.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def chat_prompt(
    metadata: Mapping[str, object],
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    add_generation_prompt: bool = True,
    **variables: object,
) -> str:
    """The prompt for a conversation, by a model's own template.

    Args:
        metadata: The model file's entries.
        tokenizer: The file's, for special tokens that an older file does not spell out.
        messages: ``{"role": …, "content": …}``, oldest first. The content is a text or a list of
            parts, as the template wants; other keys (``tool_calls``, ``name``) are the template's.
        tools: What the model may call, as JSON schemas.
        documents: What the model may read, ``{"title": …, "text": …}``.
        template: The name of one of the file's templates. None takes ``tool_use`` if there are
            tools and the file has it, and else ``default``.
        add_generation_prompt: Whether to end with the opening of the assistant's turn.
        **variables: What else the template may ask for; they go before the model's special tokens.

    Raises:
        InvalidArgumentError: The file has no such template, or it refuses these messages, fails on
            them, or takes more time or memory than a prompt may.
    """
    return render_chat(
        _chosen(metadata, template, tools is not None),
        messages,
        tools=tools,
        documents=documents,
        add_generation_prompt=add_generation_prompt,
        **{**special_tokens(metadata, tokenizer), **variables},
    )


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **variables: object,
) -> str:
    """Renders one template.

    Args:
        template: Jinja text, in the form that Hugging Face tokenizers carry it.
        messages: As for :func:`chat_prompt`; keys whose value is None count as absent.
        tools: The same; a template sees none as None.
        documents: The same.
        add_generation_prompt: The same.
        **variables: What else the template may ask for: ``bos_token``, ``eos_token``.

    Raises:
        InvalidArgumentError: The template is broken, refuses these messages, fails on them, or
            takes more time or memory than a prompt may.
    """
    try:
        values: dict[str, Any] = {
            **{name: _plain(value) for name, value in variables.items()},
            "messages": [_message(message) for message in messages],
            "tools": None if tools is None else [_plain(tool) for tool in tools],
            "documents": None if documents is None else [_plain(entry) for entry in documents],
            "add_generation_prompt": bool(add_generation_prompt),
        }
        request = marshal.dumps((template, values))
    except (RecursionError, ValueError) as error:  # marshal goes two thousand deep
        raise InvalidArgumentError(
            f"The messages are nested too deeply for a chat template ({error})."
        ) from error
    letter, text = _worker.ask(request)
    if letter == Answer.TEXT:
        return text
    if letter == Answer.REFUSED:
        raise InvalidArgumentError(f"The chat template refuses this: {text.rstrip('.')}.")
    if letter == Answer.FAILED:
        raise InvalidArgumentError(
            f"The chat template fails on these messages ({text.rstrip('.')}): each needs a 'role' "
            "and a 'content'."
        )
    raise InvalidArgumentError(
        "The chat template writes more than a prompt may hold, or needs more memory than it gets: "
        "it does not end, or is not meant for these messages."
    )


def templates(metadata: Mapping[str, object]) -> dict[str, str]:
    """A model file's chat templates by name; none for a base model.

    Raises:
        InvalidArgumentError: The file's table of them is damaged.
    """
    found = {}
    named = _table(metadata, NAMED_TEMPLATES)
    found.update({name: text for name, text in named.items() if isinstance(text, str)})
    default = metadata.get(DEFAULT_TEMPLATE)
    if isinstance(default, str):
        found["default"] = default
    return found


def _chosen(metadata: Mapping[str, object], name: str | None, with_tools: bool) -> str:
    known = templates(metadata)
    if not known:
        raise InvalidArgumentError(
            "The model has no chat template: it is a base model; write a plain prompt."
        )
    wanted = name or ("tool_use" if with_tools and "tool_use" in known else "default")
    if wanted not in known:
        raise InvalidArgumentError(
            f"The model has no chat template {wanted!r}, but {', '.join(sorted(known))}: name one "
            "of them."
        )
    return known[wanted]


def special_tokens(metadata: Mapping[str, object], tokenizer: Tokenizer) -> dict[str, Any]:
    """A model file's special tokens by the names that templates know them by."""
    if SPECIAL_TOKENS in metadata:
        return _table(metadata, SPECIAL_TOKENS)
    ends = eos_token_ids(metadata)  # a file of an older release
    return {
        "bos_token": tokenizer.token_text(tokenizer.bos_token_id),
        "eos_token": tokenizer.token_text(ends[0] if ends else None),
    }


def _table(metadata: Mapping[str, object], key: str) -> dict[str, Any]:
    """A table that a model file holds as JSON."""
    text = metadata.get(key)
    if not isinstance(text, str):
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InvalidArgumentError(f"The file's entry {key} is no table: convert the model again.")
    return table


def _message(message: object) -> dict[Any, Any]:
    plain = _plain(message)
    if not isinstance(plain, dict):
        raise InvalidArgumentError(
            f"A message is a table with 'role' and 'content', not {plain!r:.80}."
        )
    plain = {key: value for key, value in plain.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any) -> Any:
    """A value as a template may see it: data alone, and for anything else its type's name."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):  # an enumeration's members are numbers or texts here
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(_plain(entry) for entry in value)
    if getattr(value, "ndim", None) == 0:  # one number of numpy's
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if callable(getattr(value, "model_dump", None)):  # pydantic's models
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


class _Worker:
    """The process that renders; started with the first prompt, and again where it ended."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a child of a fork: the process and its pipes are the parent's."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def prepare(self) -> None:
        """Starts the process without waiting for it."""
        with self._lock:
            if self._process is None:
                self._ready = False
                self._process = _start()

    def ask(self, request: bytes) -> tuple[bytes, str]:
        """One answer: its letter and its text.

        Raises:
            InvalidArgumentError: The template ran out of time, or the process ended.
            AwqEdgeError: The process cannot be started.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                self._ready = False
                process = self._process = _start()
            try:
                if not self._ready:
                    _wait_until_ready(process)
                    self._ready = True
                return _answer(process, request)
            except BaseException:  # also Ctrl-C: what it would still answer belongs to nobody
                self._process = None
                _end(process)
                raise

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._process is not None:
                _end(self._process)
                self._process = None


def prepare() -> None:
    """Starts the process that renders, for a prompt that is soon to come; it loads meanwhile."""
    _worker.prepare()


_worker = _Worker()
os.register_at_fork(after_in_child=_worker.forget)
atexit.register(_worker.close)


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable or "python3", "-I", "-c", _PROGRAM, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise AwqEdgeError(
            f"The process for the chat template cannot be started: {error.strerror or error}."
        ) from error


def _wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    if _read(process, len(READY), time.monotonic() + _START_SECONDS) != READY:
        raise AwqEdgeError(
            f"The process for the chat template ended at once: does '{sys.executable} -c "
            '"import jinja2"\' work?'
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # a request that the process never read
                pass


def _answer(process: subprocess.Popen[bytes], request: bytes) -> tuple[bytes, str]:
    assert process.stdin is not None
    deadline = time.monotonic() + _WALL_SECONDS
    try:
        process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "little") + request)
        process.stdin.flush()
    except OSError:  # it ended; the reading below says why
        pass
    head = _read(process, 1 + LENGTH_BYTES, deadline)
    size = int.from_bytes(head[1:], "little")
    # UTF-8 has at most four bytes for a character.
    if len(head) == 1 + LENGTH_BYTES and size <= 4 * LONGEST_TEXT:
        data = _read(process, size, deadline)
        if len(data) == size:
            return head[:1], data.decode("utf-8", "surrogatepass")
    status = process.poll()
    if status is None and time.monotonic() < deadline:
        try:
            status = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
    if status is None or status == -signal.SIGPROF:
        raise InvalidArgumentError(
            f"The chat template computes for more than {CPU_SECONDS:g} s: it does not end, is not "
            "meant for these messages, or this machine is very busy."
        )
    raise InvalidArgumentError(
        f"The chat template ended the process that it runs in (status {status}): it is damaged, or "
        "not meant for these messages."
    )


def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    """Bytes of an answer; fewer where the process ended or the time is over."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    parts, missing = [], size
    while missing:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            break
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
