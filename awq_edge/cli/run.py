"""``awq-edge run``: continues a prompt. Text goes to standard output, speeds to standard error."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from typing import Annotated, Optional

import typer

from awq_edge.cli._options import (
    Context,
    Device,
    IgnoreMemory,
    Json,
    Kv,
    ModelFile,
    PrefillThreads,
    Quiet,
    Threads,
)
from awq_edge.cli._output import Output
from awq_edge.cli._prompt_text import read_standard_input
from awq_edge.generation import Generation, GenerationConfig
from awq_edge.model import Model

_DEFAULTS = GenerationConfig()
# Shorter prompts are read before anybody could look at a bar.
_PROGRESS_FROM_TOKENS = 256

_Stop = Annotated[
    Optional[list[str]],
    typer.Option("--stop", help="End the text at this string; may be given several times."),
]
_Seed = Annotated[
    Optional[int],
    typer.Option(min=0, help="Equal seeds give equal texts on every machine; drawn by default."),
]


def run(
    file: ModelFile,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text to continue; - reads standard input.")
    ],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=0, help="Stop after this many tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 always takes the likeliest token.")
    ] = _DEFAULTS.temperature,
    top_k: Annotated[
        int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps all.")
    ] = _DEFAULTS.top_k,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Keep the smallest set with this probability; 1: all."),
    ] = _DEFAULTS.top_p,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Drop tokens below this share of the likeliest; 0: none."),
    ] = _DEFAULTS.min_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes recent tokens less likely.")
    ] = _DEFAULTS.repetition_penalty,
    seed: _Seed = None,
    stop: _Stop = None,
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt before its continuation.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    threads: Threads = None,
    prefill_threads: PrefillThreads = None,
    context: Context = None,
    kv: Kv = "fp16",
    device: Device = "auto",
    ignore_memory: IgnoreMemory = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt with a packed model."""
    output = Output(as_json=as_json, quiet=quiet)
    text = read_standard_input() if prompt == "-" else prompt
    config = GenerationConfig(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    with Model.open(
        file,
        threads=threads,
        prefill_threads=prefill_threads,
        context_length=context,
        kv=kv,
        device=device,
        check_memory=not ignore_memory,
    ) as model:
        full_prompt = model.chat_tokens([{"role": "user", "content": text}]) if chat else text
        pieces = [] if not echo else [text]
        output.stream("".join(pieces))
        generation = model.generate(full_prompt, config)
        try:
            _prefill(generation, output)
            for piece in generation:
                pieces.append(piece)
                output.stream(piece)
        finally:
            output.stream("\n")
        output.status(_summary(generation))
        output.json(_document(generation, "".join(pieces)))


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
    )


def _document(generation: Generation, text: str) -> dict[str, object]:
    session = generation.session
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
    }
