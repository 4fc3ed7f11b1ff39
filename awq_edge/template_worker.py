"""The process in which chat templates run: a template is a program by somebody else.

Owns the environment that templates see, which is that of transformers, and the limits on time,
memory and length. Run by ``chat.py`` as a process of its own; refuses to import anything of the
package. The protocol: the parent writes requests, the process answers each once. A request is a
length (8 bytes, little-endian) and ``marshal`` data: the template and its variables. An answer is
one letter (``Answer``), a length and UTF-8. Before the first request the process writes ``READY``.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
import resource
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

READY = b"+"
LENGTH_BYTES = 8

# Of the processor, for one prompt. A workstation takes a few milliseconds for a large template and
# a long conversation, the slowest board some tenths of a second.
CPU_SECONDS = 1.0
# Beyond what the process has before: twenty times the largest prompt below, in Python's strings.
MEMORY_BYTES = 256 << 20
# More than any context holds: four million tokens.
LONGEST_TEXT = 16 << 20
LONGEST_REASON = 300


class Answer:
    """What an answer's letter says of the text that follows."""

    TEXT = b"T"  # the prompt
    REFUSED = b"R"  # by the template itself, or because it is none; the text is its reason
    FAILED = b"F"  # on these messages; the text is Python's reason
    SWELLED = b"S"  # beyond MEMORY_BYTES or LONGEST_TEXT; no text


def serve() -> None:
    """Answers requests from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is computing
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    make_environment()  # imports what the first request would have to wait for
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    answers.write(READY)
    answers.flush()
    while True:
        head = requests.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return
        request = requests.read(int.from_bytes(head, "little"))
        template, variables = marshal.loads(request)
        letter, text = _limited(template, variables)
        data = text.encode("utf-8", "surrogatepass")
        answers.write(letter + len(data).to_bytes(LENGTH_BYTES, "little") + data)
        answers.flush()


def _limited(template: str, variables: dict[str, Any]) -> tuple[bytes, str]:
    """Renders within the limits; where time ends, the process does."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = _address_space()
    if held is not None:
        limit = held + MEMORY_BYTES
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return render(template, variables)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def render(template: str, variables: dict[str, Any]) -> tuple[bytes, str]:
    """One answer: its letter and its text."""
    import jinja2

    try:
        text = _compiled(template).render(variables)
    except (MemoryError, RecursionError):
        return Answer.SWELLED, ""
    except jinja2.TemplateSyntaxError as error:
        return Answer.REFUSED, f"{error.message} (line {error.lineno})"[:LONGEST_REASON]
    except jinja2.TemplateError as error:
        return Answer.REFUSED, str(error)[:LONGEST_REASON]
    except Exception as error:  # a template can raise whatever its operations raise
        return Answer.FAILED, f"{type(error).__name__}: {error}"[:LONGEST_REASON]
    return (Answer.TEXT, text) if len(text) <= LONGEST_TEXT else (Answer.SWELLED, "")


@functools.lru_cache(maxsize=8)  # a conversation renders one template again and again
def _compiled(template: str) -> Any:
    return make_environment().from_string(template)


def make_environment() -> Any:
    """The environment in which transformers renders chat templates, function by function."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """``{% generation %}`` marks what the assistant wrote, for training; it stays as it is."""

        tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A block of a call, as in transformers: what is set inside is not seen outside.
            return nodes.CallBlock(self.call_method("_as_is"), [], [], body).set_lineno(line)

        def _as_is(self, caller: Any) -> str:
            return str(caller())

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc,unused-ignore]  # as jinja2 is
        """Jinja's, without names that reach for Python's internals."""

        def __init__(*arguments: Any, **values: Any) -> None:
            # Its own name for the first argument is free: namespace(self=...) is legal.
            for name in dict(*arguments[1:], **values):
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(*arguments, **values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda format: datetime.now().strftime(format),
        dict=_Dictionary(),
        namespace=Namespace,
    )
    return environment


class _Dictionary:
    """The function ``dict`` without the attributes of the class."""

    def __call__(self, *arguments: Any, **values: Any) -> dict[Any, Any]:
        return dict(*arguments, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _refuse_private(name: Any) -> None:
    import jinja2

    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}")


def _address_space() -> int | None:
    """Bytes of it that the process has; None where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[0]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
