"""How many threads decode a model fastest on this machine: measured once, then remembered.

Owns a small JSON file in the user's cache directory (``user_cache.py``). A machine is its CPU, the
number of CPUs that this process may use and the kernels; models of about one size share an answer.
While other programs take the CPUs nothing is measured: then every fast core gets a thread, and
decoding adapts itself. Refuses to fail: a file that cannot be read, trusted or written only means
another measurement.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from awq_edge.limited_json import parse_json
from awq_edge.user_cache import read_cached, write_cached

if TYPE_CHECKING:
    from awq_edge._native import NativeModel

FILE_NAME = "threads.json"
LIBRARY_CHOOSES = 0
# No machine has so many kinds of models: then the old answers are those of other machines.
_MOST_ANSWERS = 256


def decode_threads(model: NativeModel) -> int:
    """Threads for decoding, from the cache or by measuring; or ``LIBRARY_CHOOSES``."""
    cpus = _usable_cpus()
    if cpus == 1:
        return 1
    key = _key(model, cpus)
    known = _read()
    found = known.get(key)
    if type(found) is int and 1 <= found <= cpus:
        return found
    if _busy(cpus):
        return LIBRARY_CHOOSES
    threads = model.measure_threads()
    answers = {**known, key: threads}
    if len(answers) > _MOST_ANSWERS:
        answers = {key: threads}
    write_cached(FILE_NAME, (json.dumps(answers, indent=1) + "\n").encode())
    return threads


def _busy(cpus: int) -> bool:
    """Whether other programs have used more than half of the CPUs during the last minute."""
    try:
        return os.getloadavg()[0] > cpus / 2
    except OSError:  # a phone or a container that does not tell
        return False


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(model: NativeModel, cpus: int) -> str:
    from awq_edge import _native

    kernels = os.environ.get("AWQ_EDGE_KERNELS") or _native.kernel_tables()[0]
    # Twice the bytes per token is another class: what stays in a CPU's cache decodes differently.
    size_class = model.info().decode_bytes.bit_length()
    return f"{cpu_name()}; {cpus} CPUs; {kernels}; 2^{size_class} bytes"


def cpu_name(path: str = "/proc/cpuinfo") -> str:
    """The CPU by name where Linux tells one, otherwise by the numbers of its kinds of cores."""
    parts = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123  # not a file
            for line in lines:
                name, _, value = (part.strip() for part in line.partition(":"))
                if name in ("model name", "Model"):
                    return value
                if name in ("CPU implementer", "CPU part"):
                    parts.append(value)
    except OSError:
        pass
    kinds = sorted({f"{maker}/{part}" for maker, part in zip(parts[::2], parts[1::2])})
    return " + ".join(kinds) or "unknown CPU"


def _read() -> dict[str, object]:
    try:
        content = parse_json(read_cached(FILE_NAME) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
