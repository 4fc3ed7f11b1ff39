"""``awq-edge run``: continues a prompt. Text goes to standard output, speeds to standard error."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.cli._groups import Guessing, Running, Sampling, grouped
from awq_edge.cli._guesses_text import guesses_text
from awq_edge.cli._options import Context, Json, Kv, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.cli._pictures import keep_pictures
from awq_edge.cli._prompt_text import read_standard_input
from awq_edge.generation import Generation

if TYPE_CHECKING:
    from awq_edge.vision.reader import PictureReader, PreparedPicture

# Shorter prompts are read before anybody could look at a bar.
_PROGRESS_FROM_TOKENS = 256


@grouped
def run(
    file: ModelFile,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text to continue; - reads standard input.")
    ],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=0, help="Stop after this many tokens.")
    ] = 256,
    *,
    sampling: Sampling,
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt before its continuation.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    images: Annotated[
        Optional[list[Path]],
        typer.Option(
            "--image",
            metavar="PATH",
            help="A picture; several take the places of placeholders in turn, or stand in front.",
        ),
    ] = None,
    detail: Annotated[
        str,
        typer.Option(
            "--image-detail",
            metavar="low|high",
            help="low: one tile of a picture; high: as many as the model was trained on.",
        ),
    ] = "high",
    guessing: Guessing,
    running: Running,
    context: Context = None,
    kv: Kv = "fp16",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt with a packed model."""
    output = Output(as_json=as_json, quiet=quiet)
    text = read_standard_input() if prompt == "-" else prompt
    config = sampling.config(max_tokens)
    with running.open(file, context, kv, guessing) as model:
        keep_pictures(model)
        pictures = model.pictures.together(images, detail) if images else []
        for notice in (notice for picture in pictures for notice in picture.notices):
            output.status(notice)
        pieces = [] if not echo else [text]
        output.stream("".join(pieces))
        if chat:
            generation = model.chat([{"role": "user", "content": text}], config, images=pictures)
        else:
            generation = model.generate(text, config, images=pictures)
        try:
            for picture in pictures:
                _look(model.pictures, picture, output)
            _prefill(generation, output)
            for piece in generation:
                pieces.append(piece)
                output.stream(piece)
        finally:
            output.stream("\n")
        output.status(_summary(generation))
        output.json(_document(generation, "".join(pieces), len(pictures)))


def _look(reader: "PictureReader", picture: "PreparedPicture", output: Output) -> None:
    """Encodes a picture, with a bar: a board takes seconds for each of its tiles."""
    with output.progress("Looking at the picture", 1.0) as bar:
        seen = 0.0

        def report(done: int, total: int) -> None:
            nonlocal seen
            bar.advance(done / total - seen)
            seen = done / total

        reader.encoded(picture, report)


def _prefill(generation: Generation, output: Output) -> None:
    """Reads the prompt, with a bar if it is long."""
    count = len(generation.prompt_tokens)
    if count < _PROGRESS_FROM_TOKENS:
        generation.start()
        return
    with output.progress("Reading the prompt", count) as bar:
        seen = 0

        def report(done: int, _total: int) -> None:
            nonlocal seen
            bar.advance(done - seen)
            seen = done

        generation.start(report)


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def _summary(generation: Generation) -> str:
    session = generation.session
    read = len(generation.prompt_tokens) - generation.reused_tokens
    ends = {
        "eos": "the model ended the text",
        "stop": "stop string",
        "length": "--max-tokens reached",
        "context": f"context of {session.context_length} tokens is full (--context)",
    }
    return (
        f"prompt {read} tokens at {_rate(read, generation.prefill_seconds):.1f} tokens/s, "
        f"text {len(generation.tokens)} tokens at "
        f"{_rate(generation.decode_steps, generation.decode_seconds):.1f} tokens/s; "
        f"{ends.get(generation.stop_reason or '', 'stopped')}; kernels {session.kernels}, "
        f"threads {session.threads} (prompt {session.prefill_threads}), seed {generation.seed}"
        f"{guesses_text(generation)}"
    )


def _document(generation: Generation, text: str, pictures: int) -> dict[str, object]:
    session, guesses = generation.session, generation.guesses
    encoded = session.model.pictures.encodings if pictures else 0
    read = len(generation.prompt_tokens) - generation.reused_tokens
    return {
        "text": text,
        "stop_reason": generation.stop_reason,
        "seed": generation.seed,
        "prompt_tokens": len(generation.prompt_tokens),
        "generated_tokens": len(generation.tokens),
        "prefill_tokens_per_second": _rate(read, generation.prefill_seconds),
        "decode_tokens_per_second": _rate(generation.decode_steps, generation.decode_seconds),
        "kernels": session.kernels,
        "threads": session.threads,
        "prefill_threads": session.prefill_threads,
        "context_length": session.context_length,
        "kv": session.kv,
        "guessed_tokens": guesses.guessed if guesses else 0,
        "guessed_right": guesses.right if guesses else 0,
        **({"pictures": pictures, "picture_tiles_encoded": encoded} if pictures else {}),
    }
