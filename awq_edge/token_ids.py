"""What a caller passes as token ids, made a list of plain integers or refused.

Owns that one check, for every entrance of the package. Refuses texts: a tokenizer turns those into
ids.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from awq_edge.errors import InvalidArgumentError

# Things that can be walked through and are no sequence of ids, whatever they give.
_NO_SEQUENCES = (str, bytes, bytearray, dict, set, frozenset)


def token_ids(tokens: Iterable[int], vocabulary_size: int) -> list[int]:
    """The ids as a list; integers of numpy and torch become Python's.

    Args:
        tokens: Ids.
        vocabulary_size: The model's; every id must be below it.

    Raises:
        InvalidArgumentError: Something in there is no id: a float is refused even if it is whole,
            and so are booleans and strings of digits.
    """
    found = _integers(tokens)
    for token in found:
        if not 0 <= token < vocabulary_size:
            raise InvalidArgumentError(
                f"Token {token} is not in the vocabulary of {vocabulary_size}."
            )
    return found


def _integers(tokens: Iterable[int]) -> list[int]:
    if isinstance(tokens, _NO_SEQUENCES):
        raise InvalidArgumentError(
            f"Token ids are a sequence of integers, not {_kind(tokens)}: tokenize a text first."
        )
    try:
        found = list(tokens)
    except TypeError as error:
        raise InvalidArgumentError(
            f"Token ids are a sequence of integers, not {_kind(tokens)}."
        ) from error
    if set(map(type, found)) <= {int}:  # what a tokenizer gives
        return found
    return [integer(token, f"Number {place} of the token ids") for place, token in enumerate(found)]


def integer(value: object, what: str) -> int:
    """``value`` if it is an integer; ``what`` it is for the sentence otherwise."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # that is what is being asked
    except TypeError as error:
        raise InvalidArgumentError(
            f"{what} is {_kind(value)} ({value!r}): use an integer."
        ) from error


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
