"""The first generation on a board, run there by ``deploy``: prints one JSON document.

    python -m awq_edge.device.trial FILE

Owns what is reported. Refuses arguments beyond the file: it is no command for people.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from awq_edge.device.board import Throttling, read_board, read_temperature, read_throttling
from awq_edge.errors import AwqEdgeError
from awq_edge.generation import GenerationConfig
from awq_edge.model import Model

_PROMPT = "Once upon a time"
_TOKENS = 64


def main(arguments: list[str]) -> int:
    """Generates a short text and reports on it."""
    try:
        with Model.open(Path(arguments[0])) as model:
            print(json.dumps(_report(model)))
    except AwqEdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _report(model: Model) -> dict[str, object]:
    temperature, throttling = read_temperature(), read_throttling()
    generation = model.generate(_PROMPT, GenerationConfig(max_tokens=_TOKENS, temperature=0))
    text = "".join(generation)
    return {
        "prompt": _PROMPT,
        "text": text,
        "tokens": len(generation.tokens),
        "prefill_tokens_per_second": _rate(
            len(generation.prompt_tokens), generation.prefill_seconds
        ),
        "decode_tokens_per_second": _rate(generation.decode_steps, generation.decode_seconds),
        "decode_bytes": model.info.decode_bytes,
        "kernels": generation.session.kernels,
        "threads": generation.session.threads,
        "peak_rss_bytes": _peak_rss_bytes(),
        "temperature": [temperature, read_temperature()],
        "throttling": [_state(throttling), _state(read_throttling())],
        "board": asdict(read_board()),
    }


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def _state(throttling: Throttling | None) -> dict[str, bool] | None:
    return None if throttling is None else asdict(throttling)


def _peak_rss_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
