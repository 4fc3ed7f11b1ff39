"""``awq-edge bench``: tokens per second on this machine, and how near they are to its limit."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import platform
from typing import Annotated, Optional

import typer

from awq_edge import __version__
from awq_edge.cli._groups import Running, grouped
from awq_edge.cli._options import Json, Kv, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.quantities import figure_text, size_text
from awq_edge.thread_counts import cpu_name

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
    from awq_edge import benchmark

    output = Output(as_json=as_json, quiet=quiet)
    with running.open(file, kv=kv) as model:
        longest = model.info.context_length
        prompts = prompt or [min(512, longest)]
        lengths = generate or [min(128, longest)]
        session = model.session(context_length=max(*prompts, *lengths))
        steps = len(prompts) * (repetitions + 1) + len(lengths) * repetitions + 2
        with output.progress("Measuring", steps) as bar:
            on_cpu = session.kernels != "cuda"  # the figure is of the CPU's memory
            bandwidths = [benchmark.read_bandwidth(session.threads)] if on_cpu else []
            bar.advance()
            rows = [
                benchmark.measure_prefill(session, tokens, repetitions, bar.advance)
                for tokens in prompts
            ]
            rows += [
                benchmark.measure_decode(session, tokens, repetitions, bar.advance)
                for tokens in lengths
            ]
            bandwidths += [benchmark.read_bandwidth(session.threads)] if on_cpu else []
            bar.advance()
        # Other programs only ever slow a measurement down: the faster one is nearer the limit.
        bandwidth = max(bandwidths, default=None)
        decode_bytes = model.info.decode_bytes
        need = model.memory(session.context_length)
        shares = [
            row.mean * decode_bytes / bandwidth if bandwidth and row.kind == "decode" else None
            for row in rows
        ]
        output.fields(
            {
                "machine": f"{platform.machine()}, {cpu_name()}",
                "kernels": session.kernels,
                "threads": f"{session.threads} (prompt {session.prefill_threads})",
                "cache": f"{session.kv}, {session.context_length} positions, "
                f"{size_text(need.cache_bytes)}",
                "file": f"{size_text(model.info.file_bytes)}, "
                f"{size_text(decode_bytes)} of weights read per token",
                "memory": f"{size_text(bandwidth)}/s read by {session.threads} threads"
                if bandwidth
                else "the GPU's",
            },
            title=model.name,
        )
        output.table(
            ("test", "tokens", "tokens/s", "±", "share of bandwidth"),
            [
                (
                    row.kind,
                    row.tokens,
                    f"{row.mean:.2f}",
                    figure_text(row.deviation, 2),
                    "" if share is None else f"{100 * share:.0f} %",
                )
                for row, share in zip(rows, shares)
            ],
        )
        if any(share is not None and share > 1 for share in shares):
            output.line("A share above 100 %: the weights stay in the CPU's cache.")
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
                "measurements": [
                    {
                        "test": row.kind,
                        "tokens": row.tokens,
                        "tokens_per_second": row.mean,
                        "deviation": row.deviation,
                        "repetitions": list(row.rates),
                        "share_of_bandwidth": share,
                    }
                    for row, share in zip(rows, shares)
                ],
            }
        )
