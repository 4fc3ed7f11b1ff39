"""``awq-edge eval``: how good a model is, packed or in floats."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.cli._evaluated import open_evaluated, read_text
from awq_edge.cli._options import IgnoreMemory, Json, Kv, PrefillThreads, Quiet, Threads
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

_Chunks = Annotated[
    Optional[int], typer.Option(min=1, help="Score at most this many chunks; by default all.")
]
_Bytes = Annotated[
    Optional[int],
    typer.Option("--bytes", min=1, help="Use only the first bytes of the text."),
]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Measure how good a model is."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@app.command()
def ppl(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A packed file, or a Hugging Face directory in floats."
        ),
    ],
    text: Annotated[
        Path, typer.Option(help="A UTF-8 text that the model has not been trained on.")
    ],
    context: Annotated[int, typer.Option(min=4, help="Tokens per chunk.")] = 512,
    chunks: _Chunks = None,
    first_bytes: _Bytes = None,
    threads: Threads = None,
    prefill_threads: PrefillThreads = None,
    kv: Kv = "fp16",
    ignore_memory: IgnoreMemory = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, by the protocol of llama.cpp's perplexity tool."""
    output = Output(as_json=as_json, quiet=quiet)
    content = read_text(text, first_bytes)
    with open_evaluated(
        model,
        context=context,
        threads=threads,
        prefill_threads=prefill_threads,
        kv=kv,
        check_memory=not ignore_memory,
    ) as opened:
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
