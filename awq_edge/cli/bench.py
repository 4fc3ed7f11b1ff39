"""``awq-edge bench``: tokens per second on this machine, and how near they are to its limit."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge import __version__
from awq_edge.cli._groups import Running, grouped
from awq_edge.cli._options import Json, Kv, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.quantities import figure_text, size_text
from awq_edge.thread_counts import cpu_name

if TYPE_CHECKING:
    from awq_edge.device.gpu_sensors import Power
    from awq_edge.session import Session

_Lengths = Optional[list[int]]


@grouped
def bench(
    file: ModelFile,
    prompt: Annotated[
        _Lengths,
        typer.Option("--prompt", "-p", min=1, help="Prompt length; repeatable; by default 512."),
    ] = None,
    generate: Annotated[
        _Lengths,
        typer.Option("--generate", "-n", min=1, help="Tokens to decode; repeatable; 128."),
    ] = None,
    repetitions: Annotated[
        int,
        typer.Option("--repetitions", "-r", min=1, max=10_000, help="Timed repetitions of each."),
    ] = 5,
    *,
    running: Running,
    kv: Kv = "fp16",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure prefill and decode speed, and the share of the memory's read bandwidth."""
    from awq_edge import _native, benchmark
    from awq_edge.device.doctor import gpu_facts
    from awq_edge.device.gpu_sensors import CARD, PowerMeter, read_gpu_state

    output = Output(as_json=as_json, quiet=quiet)
    with running.open(file, kv=kv) as model:
        longest = model.info.context_length
        prompts = prompt or [min(512, longest)]
        lengths = generate or [min(128, longest)]
        session = model.session(context_length=max(*prompts, *lengths))
        steps = len(prompts) * (repetitions + 1) + len(lengths) * repetitions + 2
        with output.progress("Measuring", steps) as bar:
            bandwidths = [_read_bandwidth(session)]
            bar.advance()
            rows = [
                benchmark.measure_prefill(session, tokens, repetitions, bar.advance)
                for tokens in prompts
            ]
            powers: list[Optional[Power]] = [None] * len(rows)
            for tokens in lengths:
                with PowerMeter() as meter:
                    rows.append(benchmark.measure_decode(session, tokens, repetitions, bar.advance))
                power = meter.power()
                if power is not None and power.rails == CARD and not session.on_gpu:
                    power = None  # of a card that has nothing to do
                powers.append(power)
            state = read_gpu_state() if session.on_gpu else None  # while the clocks are high
            bandwidths.append(_read_bandwidth(session))
            bar.advance()
        # Other programs only ever slow a measurement down: the faster one is nearer the limit.
        bandwidth = max((found for found in bandwidths if found is not None), default=None)
        gpu = _native.gpu() if session.on_gpu else None
        decode_bytes = model.info.decode_bytes
        need = model.memory(session.context_length)
        shares = [
            row.mean * decode_bytes / bandwidth if bandwidth and row.kind == "decode" else None
            for row in rows
        ]
        joules = [None if p is None else p.watts / row.mean for p, row in zip(powers, rows)]
        measured = next((p for p in powers if p is not None), None)
        output.fields(
            {
                "machine": f"{platform.machine()}, {cpu_name()}",
                "kernels": session.kernels,
                **(
                    {}
                    if gpu is None
                    else {"GPU": ", ".join([gpu.name, *(gpu_facts(state) if state else [])])}
                ),
                "threads": f"{session.threads} (prompt {session.prefill_threads})",
                "cache": f"{session.kv}, {session.context_length} positions, "
                f"{size_text(need.cache_bytes)}",
                "file": f"{size_text(model.info.file_bytes)}, "
                f"{size_text(decode_bytes)} of weights read per token",
                "memory": _memory_text(session, bandwidth),
                **(
                    {}
                    if measured is None
                    else {"power": f"{measured.watts:.1f} W while decoding ({measured.rails})"}
                ),
            },
            title=model.name,
        )
        output.table(
            ("test", "tokens", "tokens/s", "±", "share of bandwidth", "J/token"),
            [
                (
                    row.kind,
                    row.tokens,
                    f"{row.mean:.2f}",
                    figure_text(row.deviation, 2),
                    "" if share is None else f"{100 * share:.0f} %",
                    "" if energy is None else f"{energy:.3g}",
                )
                for row, share, energy in zip(rows, shares, joules)
            ],
        )
        if any(share is not None and share > 1 for share in shares):
            output.line("A share above 100 %: the weights stay in a cache.")
        output.json(
            {
                "file": str(file),
                "name": model.name,
                "version": __version__,
                "machine": platform.machine(),
                "cpu": cpu_name(),
                "kernels": session.kernels,
                "threads": session.threads,
                "prefill_threads": session.prefill_threads,
                "kv": session.kv,
                "context_length": session.context_length,
                "cache_bytes": need.cache_bytes,
                "file_bytes": model.info.file_bytes,
                "decode_bytes": decode_bytes,
                "read_bytes_per_second": bandwidth,
                "gpu": None if gpu is None else asdict(gpu),
                "gpu_state": None if state is None else asdict(state),
                "power": None if measured is None else asdict(measured),
                "measurements": [
                    {
                        "test": row.kind,
                        "tokens": row.tokens,
                        "tokens_per_second": row.mean,
                        "deviation": row.deviation,
                        "repetitions": list(row.rates),
                        "share_of_bandwidth": share,
                        "joules_per_token": energy,
                    }
                    for row, share, energy in zip(rows, shares, joules)
                ],
            }
        )


def _read_bandwidth(session: "Session") -> Optional[float]:
    """Bytes per second of the memory that the weights are in; None where they are in two."""
    from awq_edge import benchmark

    if not session.on_gpu:
        return benchmark.read_bandwidth(session.threads)
    return benchmark.gpu_read_bandwidth() if session.kernels == "cuda" else None


def _memory_text(session: "Session", bandwidth: Optional[float]) -> str:
    if bandwidth is None:
        return "the GPU's" if session.kernels == "cuda" else "the GPU's and the CPU's"
    reader = "the GPU" if session.on_gpu else f"{session.threads} threads"
    return f"{size_text(bandwidth)}/s read by {reader}"
