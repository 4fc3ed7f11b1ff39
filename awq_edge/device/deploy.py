"""Brings a model to a board: check, copy with resume, install, self-test, first generation.

Owns the order of the steps and what they leave behind: until install.sh has finished, nothing on
the board changes but the folder ``incoming``, which the next try continues. Refuses to print.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from awq_edge.device.bundle import Bundle, Requirements
from awq_edge.device.ssh import Remote, Result
from awq_edge.errors import BoardError
from awq_edge.profiles import Profile, load_profiles

# Pythons that the packages exist for; the board's own is chosen from these.
SUPPORTED_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# An exit status of _RECEIVE.
_WRONG_SUM = 22

_IDENTIFY = r"""
uname -m
tr -d '\000' </proc/device-tree/model 2>/dev/null || true
"""

# $1: the folder. Input: lines of checksum, size and name. Prints the bytes already there per name;
# a file that is complete counts only if its checksum is right.
_LIST = r"""
set -eu
mkdir -p "$1/incoming/wheels"
while read -r sum size name; do
  file="$1/incoming/$name"
  part="$file.$sum.part"
  kept="$1/models/$name"
  have=0
  if [ ! -f "$file" ] && [ -f "$kept" ] && [ "$(wc -c <"$kept")" -eq "$size" ]; then
    ln "$kept" "$file" 2>/dev/null || true
  fi
  if [ -f "$file" ] && [ "$(sha256sum <"$file" | cut -c 1-64)" = "$sum" ]; then
    have=$size
  elif [ -f "$part" ]; then
    have=$(wc -c <"$part")
    [ "$have" -lt "$size" ] || { rm -f "$part"; have=0; }
  fi
  printf '%s %s\n' "$have" "$name"
done
"""

# $1: the file, $2: its checksum, $3: its size. Appends the input to what has arrived before. Part
# of a file is kept for the next try; all of it with a wrong checksum is not.
_RECEIVE = r"""
LC_ALL=C
export LC_ALL
part="$1.$2.part"
cat >>"$part" || { rm -f "$part"; exit 21; }
if [ "$(sha256sum <"$part" | cut -c 1-64)" = "$2" ]; then mv -f "$part" "$1"; exit 0; fi
[ "$(wc -c <"$part")" -lt "$3" ] || rm -f "$part"
exit 22
"""

_INSTALL = r"""
folder="$1"
shift
sh "$folder/incoming/install.sh" --prefix "$folder" "$@" && rm -rf "$folder/incoming"
"""

# In a folder without Python packages: "-m" looks into the current one first.
_TRIAL = r"""
cd "$1" && exec current/bin/python -m awq_edge.device.trial "models/$2"
"""


@dataclass(frozen=True)
class Facts:
    """What the check found on the board, and where it would install."""

    board: str
    machine: str
    glibc: str
    python: str
    memory_free_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    prefix: str


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
    quoted = needs.script()
    result = remote.run('exec sh -s -- --check "$@"', *options, text=quoted)
    _raise_for(remote, result, "The check")
    values = dict(line.split("=", 1) for line in result.output.splitlines() if "=" in line)
    try:
        return Facts(
            board=values["board"],
            machine=values["machine"],
            glibc=values["glibc"],
            python=values["python"],
            memory_free_bytes=int(values["memory_free_kb"]) * 1024,
            memory_total_bytes=int(values["memory_total_kb"]) * 1024,
            disk_free_bytes=int(values["disk_free_kb"]) * 1024,
            prefix=values["prefix"],
        )
    except (KeyError, ValueError) as error:
        raise BoardError(
            f"{remote.host} answered the check with something else: does its shell print text at "
            "login? Let it print nothing when ssh runs a command."
        ) from error


def arrived(remote: Remote, bundle: Bundle, prefix: str) -> Mapping[str, int]:
    """Bytes of every file that the board already has."""
    lines = "".join(
        f"{bundle.digests[name]} {path.stat().st_size} {name}\n"
        for name, path in bundle.files.items()
    )
    result = remote.run(_LIST, prefix, text=lines)
    _raise_for(remote, result, "Looking at what is already there")
    found = {}
    for line in result.output.splitlines():
        have, _, name = line.partition(" ")
        if name in bundle.files and have.isdigit():
            found[name] = int(have)
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
    for name, path in bundle.files.items():
        size = path.stat().st_size
        offset = have.get(name, 0)
        if offset >= size > 0:
            continue
        target = f"{prefix}/incoming/{name}"
        if not _copy_file(remote, bundle, name, target, offset, progress) and not _copy_file(
            remote, bundle, name, target, 0, progress
        ):
            raise BoardError(
                f"{name} arrived damaged on {remote.host} twice: check the board's disk and memory."
            )


def install(remote: Remote, prefix: str, options: list[str]) -> str:
    """Runs install.sh on the board; gives what it said."""
    result = remote.run(_INSTALL, prefix, *options)
    _raise_for(remote, result, "The installation")
    return result.errors


def first_run(remote: Remote, prefix: str, model: str) -> dict[str, Any]:
    """A first generation on the board, with speeds, memory, temperature and throttling."""
    result = remote.run(_TRIAL, prefix, model)
    _raise_for(remote, result, "The first generation")
    try:
        report: dict[str, Any] = json.loads(result.output)
    except ValueError as error:
        raise BoardError(f"The first generation on {remote.host} gave no report.") from error
    return report


def _copy_file(
    remote: Remote,
    bundle: Bundle,
    name: str,
    target: str,
    offset: int,
    progress: Callable[[int], None],
) -> bool:
    """False if what arrived is not what was sent."""
    path = bundle.files[name]
    size = path.stat().st_size
    with path.open("rb") as source:
        source.seek(offset)
        digest = bundle.digests[name]
        result = remote.send(_RECEIVE, target, digest, str(size), source=source, progress=progress)
    if result.status == 0:
        return True
    if result.status == _WRONG_SUM:
        return False
    if "No space left" in result.errors or "Disk quota exceeded" in result.errors:
        raise BoardError(
            f"The disk of {remote.host} is full, and {name} was taken away again: delete something "
            "there."
        )
    _raise_for(remote, result, f"Copying {name}")
    return False


def _raise_for(remote: Remote, result: Result, what: str) -> None:
    """A failed step as one sentence: install.sh's own, otherwise the last line of what was said."""
    if result.status == 0:
        return
    lines = [line.strip() for line in result.errors.splitlines() if line.strip()]
    mine = [line for line in lines if line.startswith("install.sh: ")]
    if mine:
        raise BoardError(f"{remote.host}: {mine[-1].removeprefix('install.sh: ')}")
    why = lines[-1].rstrip(".") if lines else f"exit status {result.status}"
    raise BoardError(f"{what} failed on {remote.host}: {why}.")
