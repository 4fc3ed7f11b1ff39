"""Tests in one process call code in another: messages, values, and stand-ins for objects.

Owns what passes between them. Only plain values do, rebuilt on this side from what the other says
they hold: an object whose comparison always says yes is never compared here. Everything else stays
where it is and has a stand-in, which can be called, walked through and have attributes.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_MOST_BYTES = 16 << 20
_MOST_ITEMS = 1 << 20
_EXACT = 1 << 53  # whole numbers that JSON's own form keeps everywhere


class Ended(Exception):
    """The other side is gone, or speaks nonsense."""


# ---- messages ------------------------------------------------------------------------------------


def send(descriptor: int, message: Any) -> None:
    """Writes one message."""
    content = json.dumps(message).encode("ascii")
    if len(content) > _MOST_BYTES:
        raise ValueError(f"a value of {len(content)} bytes is too large to hand over")
    content = struct.pack("<I", len(content)) + content
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except OSError as error:
            raise Ended("the other process has ended") from error


def receive(descriptor: int) -> Any:
    """Reads one message.

    Raises:
        Ended: There is none.
    """
    (size,) = struct.unpack("<I", _exactly(descriptor, 4))
    if size > _MOST_BYTES:
        raise Ended("a message is too long")
    try:
        return json.loads(_exactly(descriptor, size))
    except (ValueError, RecursionError) as error:
        raise Ended("a message is none") from error


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            raise Ended("the code ended before its tests did")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# ---- values --------------------------------------------------------------------------------------


def encode(value: Any, hold: Callable[[Any], int]) -> Any:
    """A value as JSON; ``hold`` keeps what is no plain value and gives its number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return ["u", str.__str__(value)]
    if isinstance(value, int):
        number = int.__int__(value)
        return number if abs(number) < _EXACT else ["i", hex(number)]
    if isinstance(value, float):
        return ["f", float.hex(value)]
    if isinstance(value, complex):
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, (bytes, bytearray)):
        return ["b" if isinstance(value, bytes) else "a", bytes(value).hex()]
    if isinstance(value, range):
        return ["r", *(encode(part, hold) for part in (value.start, value.stop, value.step))]
    for letter, kind in _CONTAINERS:
        if isinstance(value, kind):
            return [letter, *(encode(item, hold) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *([encode(k, hold), encode(v, hold)] for k, v in dict.items(value))]
    if isinstance(value, type) and _is_builtin(value):
        return ["y", value.__name__]
    if isinstance(value, StandIn):
        return ["o", object.__getattribute__(value, "_number")]
    return ["o", hold(value)]


def _is_builtin(kind: type) -> bool:
    return kind is vars(builtins).get(kind.__name__)


_CONTAINERS: tuple[tuple[str, Any], ...] = (
    *(("l", list), ("t", tuple)),
    *(("s", set), ("z", frozenset)),
)
_KINDS = dict(_CONTAINERS)


def decode(value: Any, find: Callable[[int], Any]) -> Any:
    """The value again; ``find`` gives what has a number."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if not isinstance(value, list) or not value:
        raise Ended("a value is none")
    letter, *rest = value
    if letter in _KINDS:
        return _KINDS[letter](decode(item, find) for item in rest)
    try:
        if letter == "u":
            return str(rest[0])
        if letter == "i":
            return int(rest[0], 16)
        if letter == "f":
            return float.fromhex(rest[0])
        if letter == "c":
            return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
        if letter in ("a", "b"):
            content = bytes.fromhex(rest[0])
            return content if letter == "b" else bytearray(content)
        if letter == "r":
            return range(*rest)
        if letter == "d":
            return {decode(k, find): decode(v, find) for k, v in rest}
        if letter == "o":
            return find(int(rest[0]))
        if letter == "y":
            kind = getattr(builtins, rest[0])
            if isinstance(kind, type):
                return kind
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise Ended("a value is none") from error
    raise Ended("a value is none")


# ---- the side of the tests -----------------------------------------------------------------------


class StandIn:
    """An object of the other process."""

    def __init__(self, caller: Caller, number: int) -> None:
        """Stands in for what has this number there."""
        object.__setattr__(self, "_caller", caller)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it there."""
        return _ask(self, "call", arguments, named)

    def __getattr__(self, name: str) -> Any:
        """Its attribute."""
        return _ask(self, "get", [name])

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets its attribute."""
        _ask(self, "set", [name, value])

    def __iter__(self) -> Iterator[Any]:
        """Walks through it there, and then here."""
        return iter(_ask(self, "list", []))

    def __len__(self) -> int:
        """What walking through it gives."""
        return len(_ask(self, "list", []))

    def __getitem__(self, key: Any) -> Any:
        """Its item."""
        return _ask(self, "item", [key])


def _ask(stand_in: StandIn, what: str, arguments: Sequence[Any], named: Any = None) -> Any:
    caller: Caller = object.__getattribute__(stand_in, "_caller")
    return caller.ask(what, object.__getattribute__(stand_in, "_number"), arguments, named or {})


class Caller:
    """Asks the other process, one question after the other."""

    def __init__(self, requests: int, answers: int) -> None:
        """Asks on one pipe and hears on the other."""
        self._requests, self._answers = requests, answers
        self._stand_ins: dict[int, StandIn] = {}

    def named(self, name: str) -> Any:
        """What the code calls ``name``; LookupError if it has no such thing."""
        return self.ask("name", 0, [name], {})

    def ask(self, what: str, number: int, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        """One question.

        Raises:
            Ended: There is no answer.
            Exception: What the other side raised, as the same kind where it is one of Python's own.
        """
        send(
            self._requests,
            {
                "what": what,
                "of": number,
                "arguments": [encode(argument, _refuse) for argument in arguments],
                "named": {name: encode(value, _refuse) for name, value in named.items()},
            },
        )
        answer = receive(self._answers)
        if not isinstance(answer, dict):
            raise Ended("an answer is none")
        if "error" in answer:
            raise _exception(answer["error"])
        for argument, changed in zip(arguments, answer.get("changed") or ()):
            if changed is not None:
                _replace(argument, decode(changed, self._find))
        return decode(answer.get("value"), self._find)

    def _find(self, number: int) -> StandIn:
        return self._stand_ins.setdefault(number, StandIn(self, number))


def _refuse(value: Any) -> int:
    raise TypeError(f"a {type(value).__name__} cannot be handed to the code")


def _replace(argument: Any, new: Any) -> None:
    """What the code did to an argument that it was given."""
    if isinstance(argument, (list, bytearray)):
        argument[:] = new
    elif isinstance(argument, (dict, set)):
        argument.clear()
        argument.update(new)


def _exception(error: Any) -> Exception:
    try:
        name, text = map(str, error)
    except (TypeError, ValueError):
        raise Ended("an answer is none") from None
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError asks for more
            pass
    return RuntimeError(f"{name}: {text}")


# ---- the side of the code ------------------------------------------------------------------------


def serve(requests: int, answers: int, namespace: dict[str, Any]) -> None:
    """Answers questions about ``namespace`` until nobody asks any more."""
    held: list[Any] = [None]
    numbers: dict[int, int] = {}

    def hold(value: Any) -> int:
        number = numbers.get(id(value))
        if number is None:
            number = numbers[id(value)] = len(held)
            held.append(value)
        return number

    def find(number: int) -> Any:
        return held[number]

    while True:
        try:
            question = receive(requests)
        except Ended:
            return
        arguments = [decode(part, find) for part in question["arguments"]]
        named = {name: decode(part, find) for name, part in question["named"].items()}
        answer: dict[str, Any]
        try:
            value = _answer(namespace, question["what"], held[question["of"]], arguments, named)
            answer = {"value": encode(value, hold)}
            after = [
                _changed(before, now, hold) for before, now in zip(question["arguments"], arguments)
            ]
            if any(part is not None for part in after):
                answer["changed"] = after
            send(answers, answer)
        except Ended:
            return
        except BaseException as error:
            send(answers, {"error": [type(error).__name__, str(error)[:300]]})


def _answer(
    namespace: dict[str, Any], what: str, target: Any, arguments: list[Any], named: dict[str, Any]
) -> Any:
    if what == "name":
        if arguments[0] not in namespace:
            raise LookupError(arguments[0])
        return namespace[arguments[0]]
    if what == "call":
        return target(*arguments, **named)
    if what == "get":
        return getattr(target, arguments[0])
    if what == "set":
        return setattr(target, *arguments)
    if what == "item":
        return target[arguments[0]]
    items = []
    for item in target:
        items.append(item)
        if len(items) > _MOST_ITEMS:
            raise ValueError("there are too many of them")
    return items


def _changed(before: Any, now: Any, hold: Callable[[Any], int]) -> Any:
    """What an argument has become; None if it is as it was."""
    if not isinstance(now, (list, dict, set, bytearray)):
        return None
    after = encode(now, hold)
    return None if after == before else after
