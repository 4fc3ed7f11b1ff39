"""Brings a model to a board: check, copy with resume, install, self-test, first generation.

Owns the order of the steps and what they leave behind: until install.sh has finished, nothing on
the board changes but the folder ``incoming``, which the next try continues. Refuses to print, and
to believe what a board says: ``answers.py`` reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from awq_edge.device.answers import Facts, read_facts, read_report, shown
from awq_edge.device.bundle import Bundle, Requirements, own_text
from awq_edge.device.ssh import Remote, Result
from awq_edge.errors import BoardError, FileUnreadableError
from awq_edge.profiles import Profile, load_profiles

# Pythons that the packages exist for; the board's own is chosen from these.
SUPPORTED_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# Exit statuses of incoming.py.
_FULL, _WRONG_SUM, _BUSY = 21, 22, 23
# A slow memory card reads this much while a checksum is made.
_CARD_BYTES_PER_SECOND = 5e6
_SEND_BYTES = 1 << 18
# Emulated boards and old cards take minutes for what others do in seconds.
_INSTALL_SECONDS = 2 * 3600.0
_FIRST_RUN_SECONDS = 3600.0

_IDENTIFY = r"""
uname -m
tr -d '\000' </proc/device-tree/model 2>/dev/null || true
"""

# $1: a program for the board's Python; the rest are its arguments. Its checksums and locks are the
# same everywhere, which those of a shell are not.
_PYTHON = r"""
for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
  if command -v "$name" >/dev/null 2>&1; then exec "$name" -I -B -c "$@"; fi
done
echo "there is no Python 3" >&2
exit 127
"""

# What the script says goes to standard output, for standard error is also ssh's own.
_INSTALL = r"""
folder="$1"
shift
sh "$folder/incoming/install.sh" --prefix "$folder" --link-model "$@" 2>&1 || exit
rm -rf "$folder/incoming"
"""

# Not from the current folder, and writing nothing into the release.
_TRIAL = r"""
cd "$1" && exec current/bin/python -I -B -m awq_edge.device.trial "models/$2"
"""


def identify(remote: Remote) -> Profile:
    """The profile that suits a board, by what it calls itself, otherwise by its architecture."""
    lines = remote.run(_IDENTIFY).output.splitlines()
    machine, name = (*lines, "", "")[:2]
    profiles = load_profiles()
    for profile in profiles:
        if any(name.startswith(board) for board in profile.boards):
            return profile
    # Whatever is not 64-bit x86 is taken for Arm: the check then names what is wrong.
    wanted = "x86_64-linux" if machine == "x86_64" else "aarch64-generic"
    return next(profile for profile in profiles if profile.name == wanted)


def check(remote: Remote, needs: Requirements, options: list[str]) -> Facts:
    """Runs install.sh's checks on the board without writing anything there.

    Raises:
        BoardError: The board is not fit; the text says why.
    """
    result = remote.run('exec sh -s -- --check "$@"', *options, text=needs.script())
    _raise_for(remote, result, "The check")
    return read_facts(remote.host, result.output)


@contextlib.contextmanager
def alone(remote: Remote, prefix: str) -> Iterator[None]:
    """Keeps other deploys away from a prefix while the block runs.

    Raises:
        BoardError: Another one is at work there.
    """
    with remote.hold(_PYTHON, own_text("incoming.py"), "hold", prefix) as ended:
        if ended is not None:
            if ended.status == _BUSY:
                raise BoardError(_busy(remote, prefix))
            _raise_for(remote, ended, f"Writing to {prefix}")
            raise BoardError(f"{remote.host} does not hold {prefix}: run the same command again.")
        yield


def arrived(remote: Remote, bundle: Bundle, prefix: str) -> Mapping[str, int]:
    """Bytes of every file that the board already has.

    What an earlier deploy left there and this one does not need is removed.
    """
    sizes = {name: path.stat().st_size for name, path in bundle.files.items()}
    lines = "".join(f"{bundle.digests[name]} {size} {name}\n" for name, size in sizes.items())
    result = remote.run(
        _PYTHON,
        own_text("incoming.py"),
        "list",
        prefix,
        bundle.needs.model.name,
        text=lines,
        seconds=120 + sum(sizes.values()) / _CARD_BYTES_PER_SECOND,
    )
    if result.status == _BUSY:
        raise BoardError(_busy(remote, prefix))
    _raise_for(remote, result, "Looking at what is already there")
    found = {}
    for line in result.output.splitlines():
        have, _, name = line.partition(" ")
        if name in sizes and have.isascii() and have.isdigit() and len(have) < 16:
            found[name] = min(int(have), sizes[name])
    return found


def copy(
    remote: Remote,
    bundle: Bundle,
    prefix: str,
    have: Mapping[str, int],
    progress: Callable[[int], None],
) -> None:
    """Copies what is missing; every file is compared by its checksum once it is there.

    Args:
        remote: The board.
        bundle: What to copy.
        prefix: The board's folder for awq-edge.
        have: What ``arrived`` told.
        progress: Called with bytes handed over.
    """
    offsets = {
        name: have.get(name, 0)
        for name, path in bundle.files.items()
        if not 0 < path.stat().st_size <= have.get(name, 0)
    }
    wrong = _send(remote, bundle, prefix, offsets, progress)
    if wrong:
        wrong = _send(remote, bundle, prefix, dict.fromkeys(wrong, 0), progress)
    if wrong:
        raise BoardError(
            f"{wrong[0]} arrived damaged on {remote.host} twice: check the board's disk and memory."
        )


def install(
    remote: Remote,
    prefix: str,
    options: list[str],
    heard: Callable[[str], None] | None = None,
) -> None:
    """Runs install.sh on the board.

    Args:
        remote: The board.
        prefix: Where the bundle is, in ``incoming``.
        options: For install.sh.
        heard: Called with each of its lines when it comes.
    """

    def tell(line: str) -> None:
        if heard is not None and not line.startswith("install.sh: "):
            heard(shown(line))

    result = remote.run(_INSTALL, prefix, *options, seconds=_INSTALL_SECONDS, heard=tell)
    _raise_for(remote, result, "The installation")


def first_run(remote: Remote, prefix: str, model: str) -> dict[str, Any]:
    """A first generation on the board, with speeds, memory, temperature and throttling."""
    result = remote.run(_TRIAL, prefix, model, seconds=_FIRST_RUN_SECONDS)
    _raise_for(remote, result, "The first generation")
    return read_report(remote.host, result.output)


def _send(
    remote: Remote,
    bundle: Bundle,
    prefix: str,
    offsets: Mapping[str, int],
    progress: Callable[[int], None],
) -> list[str]:
    """Sends files from their offsets on; gives the names of those that arrived damaged."""
    if not offsets:
        return []
    sizes = {name: bundle.files[name].stat().st_size for name in offsets}

    def parts() -> Iterator[bytes]:
        for name, offset in offsets.items():
            yield f"{bundle.digests[name]} {sizes[name]} {offset} {name}\n".encode()
            yield from _rest(bundle.files[name], offset, sizes[name], progress)

    result = remote.send(
        _PYTHON,
        own_text("incoming.py"),
        "receive",
        prefix,
        parts=parts(),
        size_bytes=sum(sizes.values()),
        seconds=120 + sum(sizes.values()) / _CARD_BYTES_PER_SECOND,
    )
    words = [line.split(" ", 1) for line in result.output.splitlines()]
    named = [line[1] for line in words if len(line) == 2 and line[1] in offsets]
    if result.status == _WRONG_SUM and named:
        return named
    if result.status == _FULL and named:
        raise BoardError(
            f"The disk of {remote.host} is full, and {named[-1]} was taken away again: delete "
            "something there."
        )
    if result.status == _BUSY:
        raise BoardError(_busy(remote, prefix))
    _raise_for(remote, result, "Copying")
    return []


def _rest(path: Path, offset: int, size: int, progress: Callable[[int], None]) -> Iterator[bytes]:
    """A file's bytes from ``offset`` to ``size``."""
    with path.open("rb") as source:
        source.seek(offset)
        while offset < size:
            part = source.read(min(_SEND_BYTES, size - offset))
            if not part:
                raise FileUnreadableError(f"{path} became shorter while it was copied: try again.")
            yield part
            offset += len(part)
            progress(len(part))


def _busy(remote: Remote, prefix: str) -> str:
    return (
        f"Another deploy to {prefix} on {remote.host} is at work: wait until it has ended, and run "
        "the same command again."
    )


def _raise_for(remote: Remote, result: Result, what: str) -> None:
    """A failed step as one sentence: install.sh's own, otherwise the last line of what was said."""
    if result.status == 0:
        return
    lines = [line.strip() for line in f"{result.output}\n{result.errors}".splitlines()]
    mine = [line for line in lines if line.startswith("install.sh: ")]
    if mine:
        words = shown(mine[-1].partition(": ")[2], 1000)
        raise BoardError(f"{remote.host}: {words}")
    said = [line for line in result.errors.splitlines() if line.strip()] or [
        line for line in lines if line
    ]
    why = shown(said[-1].strip()).rstrip(".") if said else f"exit status {result.status}"
    raise BoardError(f"{what} failed on {remote.host}: {why}.")
