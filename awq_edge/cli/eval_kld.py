"""``awq-edge eval kld``: how far a model's predictions lie from those of its float model."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from awq_edge.cli._evaluated import open_evaluated, read_text
from awq_edge.cli._groups import Running, grouped
from awq_edge.cli._options import (
    Chunks,
    ChunkTokens,
    EvaluatedModel,
    FirstBytes,
    Json,
    Quiet,
)
from awq_edge.cli._output import Output
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantities import figure_text


@grouped
def kld(
    model: EvaluatedModel,
    reference: Annotated[
        Path, typer.Option(help="What to compare with: usually the float directory.")
    ],
    text: Annotated[Path, typer.Option(help="A UTF-8 text.")],
    context: ChunkTokens = 512,
    chunks: Chunks = None,
    first_bytes: FirstBytes = None,
    *,
    running: Running,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model's predictions with its float model's: divergence, agreement, flips."""
    from awq_edge.accuracy.kld import measure
    from awq_edge.accuracy.perplexity import cut_chunks

    output = Output(as_json=as_json, quiet=quiet)
    content = read_text(text, first_bytes)
    settings: dict[str, Any] = {"context": context, "running": running}
    with ExitStack() as stack:
        candidate = stack.enter_context(open_evaluated(model, **settings))
        original = stack.enter_context(open_evaluated(reference, **settings))
        tokenizer = original.tokenizer
        tokens = tokenizer.encode(content)
        if candidate.tokenizer.encode(content) != tokens:
            raise InvalidArgumentError(
                f"{model} and {reference} read the text as different tokens, so their predictions "
                "cannot be compared."
            )
        bos = tokenizer.bos_token_id if tokenizer.add_bos_token else None
        cut = cut_chunks(tokens, context, bos_token_id=bos, limit=chunks)
        with output.progress("Divergence", len(cut)) as bar:
            result = measure(
                original.source,
                candidate.source,
                cut,
                lambda so_far: bar.advance(1, f"{so_far.mean:.5f} nats"),
            )
        details = candidate.details
    output.fields(
        {
            "divergence": f"{result.mean:.6f} ± "
            f"{figure_text(result.standard_error, 6)} nats (median {result.median:.6f}, "
            f"99 % {result.percentile_99:.5f}, largest {result.largest:.4f})",
            "same top token": f"{100 * result.agreement:.2f} ± "
            f"{figure_text(result.agreement_error, 2, scale=100)} %",
            "flips": f"{100 * result.flips:.2f} %",
            "perplexity": f"{result.perplexity:.4f}, reference "
            f"{result.reference_perplexity:.4f} "
            f"({100 * (result.perplexity / result.reference_perplexity - 1):+.2f} %)",
            "scored": f"{result.tokens} tokens in {result.chunks} chunks of {context}",
        }
    )
    output.json(
        {
            "model": str(model),
            "reference": str(reference),
            "text": str(text),
            "context": context,
            **asdict(result),
            **details,
        }
    )
