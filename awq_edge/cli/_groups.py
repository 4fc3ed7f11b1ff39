"""Options that belong together and that several commands take: said once, handed over as one value.

Owns the groups and the way that a command gets them. Refuses single options: ``_options.py`` has
those.
"""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Optional, Union

import typer

from awq_edge.cli._options import model_path
from awq_edge.generation import GenerationConfig
from awq_edge.model import Model

_DEFAULTS = GenerationConfig()


@dataclass(frozen=True)
class Guessing:
    """How texts are guessed ahead."""

    lookup: Annotated[
        bool,
        typer.Option(
            "--lookup",
            help="Guess that a text goes on as it did before: the same text, sooner where it "
            "copies.",
        ),
    ] = False
    draft: Annotated[
        Optional[Path],
        typer.Option(
            "--draft",
            metavar="FILE",
            parser=model_path,
            help="A smaller model of the same tokens that guesses: the same text, sooner.",
        ),
    ] = None


_NO_GUESSING = Guessing()


@dataclass(frozen=True)
class Running:
    """How a packed file is run."""

    threads: Annotated[
        Optional[int],
        typer.Option(
            min=1, max=1024, help="Threads while decoding; by default what is fastest here."
        ),
    ] = None
    prefill_threads: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            max=1024,
            help="Threads while reading a prompt; as --threads, or every fast core.",
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="auto, cpu or cuda (an NVIDIA GPU); the results are the same."
        ),
    ] = "auto"
    gpu_layers: Annotated[
        Optional[str],
        typer.Option(
            metavar="N|auto",
            help="How many of the last layers the GPU computes, the CPU the others; auto: as many "
            "as it has room for. By default the whole model.",
        ),
    ] = None
    attention: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="exact, or tensor with --device cuda: prompts on fp16 tensor cores, sooner, with "
            "results that differ a little.",
        ),
    ] = "exact"
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Run even if the free memory looks too small.")
    ] = False

    def open(
        self,
        file: Path,
        context: Optional[int] = None,
        kv: str = "fp16",
        guessing: Guessing = _NO_GUESSING,
    ) -> Model:
        """Opens a file to run like this."""
        return Model.open(
            file,
            threads=self.threads,
            prefill_threads=self.prefill_threads,
            context_length=context,
            kv=kv,
            device=self.device,
            gpu_layers=_layers(self.gpu_layers),
            attention=self.attention,
            check_memory=not self.ignore_memory,
            lookup=guessing.lookup,
            draft=guessing.draft,
        )


def _layers(text: Optional[str]) -> Union[int, str, None]:
    return int(text) if text is not None and text.isdecimal() else text


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and what ends a text."""

    temperature: Annotated[
        float, typer.Option(min=0, help="0 always takes the likeliest token.")
    ] = _DEFAULTS.temperature
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps all.")] = (
        _DEFAULTS.top_k
    )
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Keep the smallest set with this probability; 1: all."),
    ] = _DEFAULTS.top_p
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Drop tokens below this share of the likeliest; 0: none."),
    ] = _DEFAULTS.min_p
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes recent tokens less likely.")
    ] = _DEFAULTS.repetition_penalty
    seed: Annotated[
        Optional[int],
        typer.Option(
            min=0, help="Equal seeds give equal texts on every machine; drawn by default."
        ),
    ] = None
    stop: Annotated[
        Optional[list[str]],
        typer.Option("--stop", help="End the text at this string; may be given several times."),
    ] = None

    def config(self, max_tokens: Optional[int]) -> GenerationConfig:
        """What a generation is told."""
        drawn = {field.name: getattr(self, field.name) for field in fields(self)}
        return GenerationConfig(max_tokens=max_tokens, **{**drawn, "stop": tuple(self.stop or ())})


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a group's type are the options of that group."""
    taken = inspect.signature(command).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in taken.items()
        if is_dataclass(parameter.annotation)
    }
    shown = []
    for name, parameter in taken.items():
        parts = (
            [(field.name, field.default, field.type) for field in fields(groups[name])]
            if name in groups
            else [(name, parameter.default, parameter.annotation)]
        )
        for part, default, annotation in parts:
            shown.append(
                inspect.Parameter(
                    part, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
            )

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
