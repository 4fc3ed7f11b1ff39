"""How sizes, counts and durations read: the same wording in results, progress and errors.

Owns the text, and sizes as people write them. Refuses to measure.
"""

from __future__ import annotations

import re

from awq_edge.errors import InvalidArgumentError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "mi": 2**20, "gi": 2**30}


def size_text(size_bytes: float) -> str:
    """A size for people, in decimal units as disks and memory rates are quoted: ``26.5 MB``."""
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} B"
    if abs(size_bytes) < 1e6:
        return f"{size_bytes / 1e3:.1f} kB"
    if abs(size_bytes) < 1e9:
        return f"{size_bytes / 1e6:.1f} MB"
    # Two decimals: what needs 1.23 GB does not fit into 1.20.
    return f"{size_bytes / 1e9:.2f} GB"


def count_text(count: float) -> str:
    """A count for people: ``44.6 M``."""
    for unit in ("", " k", " M", " G"):
        if abs(count) < 1000 or unit == " G":
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError("unreachable: the loop returns at G")


def figure_text(value: float | None, decimals: int, *, scale: float = 1) -> str:
    """A figure for people, a dash where there is none."""
    return "-" if value is None else f"{scale * value:.{decimals}f}"


def duration_text(seconds: float) -> str:
    """A duration for people: ``0.8 s``, ``2 min 05 s``, ``1 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def parse_duration(text: str) -> float:
    """90s, 5m, 1h30m, or a plain number of seconds; infinite where it is negative.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    match = re.fullmatch(
        r"(?P<minus>-?)(?:(?P<s>\d+(?:\.\d+)?)|"
        r"(?=\d)(?:(?P<hours>\d+)h)?(?:(?P<minutes>\d+)m)?(?:(?P<seconds>\d+(?:\.\d+)?)s)?)",
        text.strip(),
    )
    if match is None:
        raise InvalidArgumentError(
            f"The duration {text!r:.40} is no time; write it as 90s, 5m, 1h30m or a number of "
            "seconds, and -1 for ever."
        )
    if match["minus"]:
        return float("inf")
    if match["s"] is not None:
        return float(match["s"])
    return (
        3600 * float(match["hours"] or 0)
        + 60 * float(match["minutes"] or 0)
        + float(match["seconds"] or 0)
    )


def parse_size(text: str) -> int:
    """600MB, 1.5GB, 700MiB or a plain number, in bytes.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[kMG]|[MG]i)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise InvalidArgumentError(
            f"The size {text!r} is no number of bytes; write it as 600MB, 1.5GB or 700MiB."
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])
