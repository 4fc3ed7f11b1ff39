"""``awq-edge ps``: this user's servers on this machine, and what they do."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import time
from dataclasses import asdict
from typing import Any, Optional

from awq_edge.cli._options import Json
from awq_edge.cli._output import Output
from awq_edge.quantities import duration_text, size_text

# A server answers this between two steps of a model; one that does not is stuck or far away.
_SECONDS = 2.0
_MOST_BYTES = 1 << 20
# Of what it counts; beyond, and NaN, it is no figure.
_LARGEST = 1 << 60


def ps(as_json: Json = False) -> None:
    """List the servers that run here: address, models, memory, speed."""
    from awq_edge.running_servers import running_servers

    output = Output(as_json=as_json)
    rows, documents = [], []
    for server in running_servers():
        health = _health(server.address)
        documents.append({**asdict(server), "health": health})
        loaded = health.get("loaded")
        loaded = loaded if isinstance(loaded, list) else None
        memory, speed = (_figure(health, key) for key in ("memory_bytes", "tokens_per_second"))
        rows.append(
            (
                server.address,
                server.pid,
                ", ".join(
                    f"{name}{'' if loaded is None or name in loaded else ' (not loaded)'}"
                    for name in server.models
                ),
                "-" if memory is None else size_text(memory),
                "-" if speed is None else f"{speed:.1f} tokens/s",
                duration_text(max(0.0, time.time() - server.since)),
                str(health.get("status", "no answer")),
            )
        )
    if rows:
        columns = ("address", "process", "models", "memory", "speed", "for", "status")
        output.table(columns, rows)
    else:
        output.line("No server of yours runs here: awq-edge serve starts one.")
    output.json({"servers": documents})


def _figure(health: dict[str, Any], key: str) -> Optional[float]:
    value = health.get(key)
    is_number = isinstance(value, (int, float)) and abs(value) < _LARGEST
    return value if is_number else None


def _health(address: str) -> dict[str, Any]:
    """What a server says of itself; nothing if it does not answer soon, or wants a key."""
    import http.client
    import urllib.error
    import urllib.request

    from awq_edge.limited_json import parse_json

    # Never through a proxy: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=_SECONDS) as answer:
            found = parse_json(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return {"status": "wants a key" if error.code == 401 else f"answers {error.code}"}
    except (http.client.HTTPException, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
