"""``awq-edge eval``: how good a model is, packed or in floats."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.cli._evaluated import open_evaluated, read_text
from awq_edge.cli._groups import Running, grouped
from awq_edge.cli._options import (
    Chunks,
    ChunkTokens,
    EvaluatedModel,
    FirstBytes,
    Json,
    Kv,
    Quiet,
)
from awq_edge.cli._output import Output
from awq_edge.cli.eval_kld import kld
from awq_edge.cli.eval_tasks import tasks
from awq_edge.quantities import figure_text

if TYPE_CHECKING:
    from awq_edge.accuracy.perplexity import LogitsSource, Perplexity
    from awq_edge.tokenizer import Tokenizer

app = typer.Typer(
    help="Measure how good a model is.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Measure how good a model is."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@app.command()
@grouped
def ppl(
    model: EvaluatedModel,
    text: Annotated[
        Path, typer.Option(help="A UTF-8 text that the model has not been trained on.")
    ],
    context: ChunkTokens = 512,
    chunks: Chunks = None,
    first_bytes: FirstBytes = None,
    *,
    running: Running,
    kv: Kv = "fp16",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, by the protocol of llama.cpp's perplexity tool."""
    output = Output(as_json=as_json, quiet=quiet)
    content = read_text(text, first_bytes)
    with open_evaluated(model, context=context, running=running, kv=kv) as opened:
        result = _measure(opened.source, opened.tokenizer, content, context, chunks, output)
        details = opened.details
    output.line(
        f"perplexity {result.value:.4f} ± {figure_text(result.standard_error, 4)} "
        f"({result.chunks} chunks of {context} tokens, {result.tokens} scored)"
    )
    output.json(
        {
            "model": str(model),
            "text": str(text),
            "context": context,
            "perplexity": result.value,
            "standard_error": result.standard_error,
            "chunks": result.chunks,
            "scored_tokens": result.tokens,
            **details,
        }
    )


def _measure(
    source: "LogitsSource",
    tokenizer: "Tokenizer",
    content: str,
    context: int,
    limit: Optional[int],
    output: Output,
) -> "Perplexity":
    from awq_edge.accuracy.perplexity import cut_chunks, measure

    bos = tokenizer.bos_token_id if tokenizer.add_bos_token else None
    chunks = cut_chunks(tokenizer.encode(content), context, bos_token_id=bos, limit=limit)
    with output.progress("Perplexity", len(chunks)) as bar:
        return measure(
            source,
            chunks,
            lambda so_far: bar.advance(
                1, f"{so_far.value:.3f} ± {figure_text(so_far.standard_error, 3)}"
            ),
        )


app.command()(kld)
app.command()(tasks)
