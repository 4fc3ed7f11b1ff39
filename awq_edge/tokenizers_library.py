"""The package ``tokenizers`` behind one door: loading, encoding, decoding, and its failures.

Owns the turning of its errors into ours. The package raises nothing narrower than ``Exception``,
and where its Rust code panics a ``BaseException`` that ``except Exception`` lets pass, with lines
on standard error beside it. Refuses to know what a token means: ``tokenizer.py`` does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from awq_edge.errors import AwqEdgeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Encoded and decoded once when a tokenizer is loaded: settings that make the package panic do so
# here, not in the middle of a prompt.
_PROBES = (
    "",
    " ",
    "a",
    "Once upon a time, there were 12,345 llamas.",
    "  two  blanks\n\n\ttab é 漢字 🦙\u200d🦙 \x00\ufffd<s></s>",
)
_REASON_CHARACTERS = 300  # of what the package says; it may quote a whole file

_loading = threading.Lock()
# A fork while standard error is aside would leave it there in the child.
os.register_at_fork(
    before=_loading.acquire,
    after_in_parent=_loading.release,
    after_in_child=_loading.release,
)


def load_tokenizer(text: str, failure: Callable[[str], AwqEdgeError]) -> Tokenizer:
    """Reads a whole ``tokenizer.json``; texts are neither cut nor padded, whatever it says.

    Args:
        text: The text of that file.
        failure: Makes the error to raise from the package's reason, which has no final dot.

    Raises:
        AwqEdgeError: What ``failure`` makes; the package cannot read or use this tokenizer.
    """
    with failures_become(failure), _loading, _panics_unprinted():
        # The first import takes a tenth of a second and may be what fails.
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for probe in _PROBES:
            tokenizer.decode(tokenizer.encode(probe).ids)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, failure: Callable[[str], AwqEdgeError]) -> list[int]:
    """Token ids of a text, without what a post-processor puts around it."""
    with failures_become(failure):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


def decode(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    skip_special_tokens: bool,
    failure: Callable[[str], AwqEdgeError],
) -> str:
    """The text of token ids; ids that the tokenizer does not know are left out."""
    with failures_become(failure):
        return str(tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))


def surroundings(
    tokenizer: Tokenizer, failure: Callable[[str], AwqEdgeError]
) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and behind every text."""
    with failures_become(failure):
        for text in ("a", "1", " "):
            encoding = tokenizer.encode(text)
            ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
            if 0 in added:
                first = added.index(0)
                last = len(added) - 1 - added[::-1].index(0)
                return ids[:first], ids[last + 1 :]
        return ids, []  # a tokenizer that reads none of these texts: all that it puts comes first


@contextmanager
def failures_become(failure: Callable[[str], AwqEdgeError]) -> Iterator[None]:
    """Turns whatever the package raises into the error that ``failure`` makes of its reason."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ImportError, AwqEdgeError):
        raise
    except BaseException as error:  # a panic is one, and no class of the package's names it
        raise failure(_reason(error)) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, Exception):
        text = f"an error inside it: {text}"
    if len(text) > _REASON_CHARACTERS:
        text = text[:_REASON_CHARACTERS] + " …"
    return text.rstrip(".")


@contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Keeps what a panic prints from standard error; everything else arrives a little later.

    Rust writes to the descriptor itself, and its hook is out of Python's reach.
    """
    try:
        aside = _file_without_name()
        kept = os.dup(2)
    except OSError:  # standard error is closed, or nothing can be written anywhere
        yield
        return
    panicked = False
    os.dup2(aside.fileno(), 2)
    try:
        yield
    except BaseException as error:
        panicked = not isinstance(error, Exception)
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        with aside:
            if not panicked:
                _write_again(aside.fileno())


def _file_without_name() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("awq-edge"), "w+b")
    import tempfile  # loads random numbers and their hashes: as long as a small model answers

    return tempfile.TemporaryFile()


def _write_again(descriptor: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, 1 << 16):
        try:
            os.write(2, block)
        except OSError:  # nobody reads standard error any more
            return
