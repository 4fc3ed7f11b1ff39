"""``/metrics`` in the text format of Prometheus. Owns the names; counters end in ``_total``."""

from __future__ import annotations

from collections.abc import Iterator

from awq_edge.serve import board
from awq_edge.serve.service import Service

_PREFIX = "awq_edge_"


def metrics_text(service: Service) -> str:
    """All metrics of a server."""
    return "".join(_lines(service))


def _lines(service: Service) -> Iterator[str]:
    engine, counts = service.engine, service.engine.counts
    yield from _counter("prompt_tokens", "Tokens of prompts.", counts.prompt_tokens)
    yield from _counter(
        "prompt_tokens_reused", "Of them, those that a cache had.", counts.reused_tokens
    )
    yield from _counter("prompt_tokens_read", "Of them, those evaluated.", counts.read_tokens)
    yield from _counter(
        "prefix_breaks", "Prompts whose client changed their beginning.", engine.breaks.count
    )
    yield from _counter("tokens", "Tokens drawn.", counts.tokens)
    yield from _speculation(service)
    yield from _counter("steps", "Evaluations of all sessions together.", counts.steps)
    yield from _counter("step_seconds", "Their time.", counts.step_seconds)
    yield from _counter("queue_seconds", "Time of all texts in the queue.", counts.waited_seconds)
    yield from _counter(
        "first_token_seconds", "Time of all texts to their first token.", counts.first_token_seconds
    )
    yield from _counter("first_tokens", "Texts that came so far.", counts.first_tokens)
    yield from _counter("pictures", "Pictures of prompts.", counts.pictures)
    yield from _counter(
        "picture_tiles_encoded", "Tiles of them that a tower has read.", engine.encoder.tiles
    )
    yield from _counter("picture_encoding_seconds", "Their time.", engine.encoder.seconds)
    yield from _counter(
        "pictures_from_disk", "Pictures that were encoded before.", engine.encoder.from_disk
    )
    yield from _gauge("pictures_waiting", "Pictures to encode.", engine.encoder.waiting)
    yield from _counter(
        "cpu_seconds", "Processor time of this process.", board.processes_cpu_seconds()
    )
    yield from _head("texts_total", "Texts by how they ended.", "counter")
    for reason, count in sorted(dict(counts.texts).items()):
        yield f'{_PREFIX}texts_total{{reason="{reason}"}} {count}\n'
    yield from _gauge("texts_live", "Texts being read or written.", engine.live_texts)
    yield from _gauge("texts_waiting", "Texts in the queue.", engine.waiting_texts)
    yield from _gauge("tokens_per_second", "Over the last seconds.", counts.tokens_per_second())
    yield from _gauge("session_bytes", "Allocated for contexts.", engine.session_bytes())
    stored = engine.stored
    if stored is not None:
        yield from _gauge("stored_contexts", "Contexts on disk.", stored.count)
        yield from _gauge("stored_bytes", "Their files.", stored.total_bytes)
        yield from _counter("stored_contexts_read", "Of them, read.", stored.read_count)
        yield from _counter("stored_contexts_written", "Files written.", stored.written_count)
    yield from _gauge("memory_bytes", "Of this process, swap included.", board.memory_bytes())
    temperature = board.temperature_celsius()
    if temperature is not None:
        yield from _gauge("temperature_celsius", "Of the hottest zone.", temperature)
    throttled = board.throttled()
    if throttled is not None:
        yield from _gauge("throttled", "1 while the board slows down.", int(throttled))
    yield from _head("model_loaded", "1 for each model that is open.", "gauge")
    for served in service.models.all:
        name = served.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        yield f'{_PREFIX}model_loaded{{model="{name}"}} {int(served.model is not None)}\n'


def _speculation(service: Service) -> Iterator[str]:
    """What guessing ahead gave, of the models that are open."""
    models = [served.model for served in service.models.all]
    shared = [model.speculation for model in models if model is not None and model.speculation]
    if not shared:
        return
    yield from _counter(
        "tokens_guessed", "Tokens that were guessed.", sum(one.guessed for one in shared)
    )
    yield from _counter(
        "tokens_guessed_right", "Of them, those that came true.", sum(one.right for one in shared)
    )
    yield from _counter(
        "guessing_rests",
        "How often guessing was switched off because it would lose.",
        sum(one.rests for one in shared),
    )


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} {kind}\n"


def _counter(name: str, text: str, value: float) -> Iterator[str]:
    yield from _head(f"{name}_total", text, "counter")
    yield f"{_PREFIX}{name}_total {value}\n"


def _gauge(name: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, text, "gauge")
    yield f"{_PREFIX}{name} {value}\n"
