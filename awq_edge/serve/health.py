"""``/health``: whether the server lives, and how the board fares. Never waits for the engine."""

from __future__ import annotations

import time
from typing import Any

from awq_edge.serve import board
from awq_edge.serve.service import Service

# A step is a fraction of a second on every board; one that takes this long will not end.
_STUCK_SECONDS = 120.0


def health_table(service: Service) -> dict[str, Any]:
    """The answer.

    Its ``status`` is "ok" or "stuck"; ``temperature_celsius`` and ``throttled`` are null where the
    machine does not say.
    """
    engine = service.engine
    began = engine.step_began
    age = 0.0 if began is None else time.monotonic() - began
    temperature = board.temperature_celsius()
    return {
        "status": "stuck" if age > _STUCK_SECONDS else "ok",
        "models": service.models.names,
        "loaded": [one.name for one in service.models.all if one.model is not None],
        "tokens_per_second": round(engine.counts.tokens_per_second(), 2),
        "memory_bytes": board.memory_bytes(),
        "temperature_celsius": temperature,
        "throttled": board.throttled(),
        "live": engine.live_texts,
        "waiting": engine.waiting_texts,
        "step_seconds": round(age, 3),
        "uptime_seconds": round(time.monotonic() - service.started, 1),
    }
