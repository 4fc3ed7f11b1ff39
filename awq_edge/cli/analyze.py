"""``awq-edge analyze``: what rounding does to a model, as one page of tables and plots."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from awq_edge.cli._options import Json, Quiet, file_path, listed
from awq_edge.cli._output import Output
from awq_edge.errors import CheckpointError, InvalidArgumentError


def analyze(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A float checkpoint's directory, or a hub id.")
    ],
    report: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", parser=file_path, help="The page to write."),
    ] = Path("analysis.html"),
    bits: Annotated[int, typer.Option(help="Bits of the rounded weights: 2 to 6, or 8.")] = 3,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale.")] = 128,
    text: Annotated[
        Optional[Path],
        typer.Option(help="Text to judge by; by default the end of the calibration text."),
    ] = None,
    calibration: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="[NAME=]FILE",
            help="Calibration text; repeatable, to compare domains. By default the shipped one.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration blocks.")] = 32,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a block.")] = 256,
    sizes: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="N,…",
            help="Numbers of blocks to calibrate with, by default 1,4,16,64; none: skip that.",
        ),
    ] = None,
    methods: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="NAME,…", help="Methods whose calibration is compared, by default awq."
        ),
    ] = None,
    context: Annotated[int, typer.Option(min=4, help="Tokens per judged chunk.")] = 256,
    chunks: Annotated[int, typer.Option(min=1, help="Judged chunks.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws blocks and random channels.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing page.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what rounding does to a model: salient channels, exponents, calibration."""
    output = Output(as_json=as_json, quiet=quiet)
    output.status(f"Reading {model} …")
    import matplotlib  # noqa: F401  # before hours of work

    from awq_edge.analysis import calibration_runs, exponents, salient
    from awq_edge.analysis.report import Analysis, write_html
    from awq_edge.analysis.subject import Settings, Subject, divide_text
    from awq_edge.calibration.shipped import read_kinds
    from awq_edge.calibration.text import read_text
    from awq_edge.float_model import open_float_model
    from awq_edge.hf_tokenizer import tokenizer_of
    from awq_edge.layouts import Layout
    from awq_edge.outputs.place import Place
    from awq_edge.outputs.whole_file import whole_file
    from awq_edge.quantize.methods import named

    Layout(1, 1, bits, group_size)  # refuses widths and groups that do not exist
    place = Place(report, replace=force)
    settings = Settings(bits, group_size, samples, sequence_length, context, chunks, seed)
    texts = calibration_runs.named_texts(calibration or [])
    if not texts:
        texts = {"shipped novels": read_kinds()["prose"]}
    names = list(texts)
    if text is None:
        texts[names[0]], judged = divide_text(texts[names[0]])
    else:
        judged = read_text(text)
    counts = _numbers(listed(sizes or ["1,4,16,64"]))
    wanted = listed(methods or ["awq"])
    for method in wanted:
        named(method)  # refuses names that do not exist

    source = open_float_model(model)
    read = [*calibration_runs.text_files(calibration or []), *([] if text is None else [text])]
    place.refuse_inputs({"the checkpoint": source.checkpoint.files(), "the texts": read})
    tokenizer = tokenizer_of(source.checkpoint)
    if tokenizer is None:
        raise CheckpointError(
            f"{source.checkpoint.directory} holds neither tokenizer.json nor tokenizer.model."
        )
    subject = Subject(source, tokenizer, settings, texts[names[0]], judged)
    runs = (len(counts) + len(names) - 1) * len(wanted) if counts else 0
    steps = 2 + subject.architecture.layers + 1 + len(salient.RULES) * len(salient.SHARES)
    with output.progress("Analysing", steps + 4 * runs) as bar:
        baseline = subject.perplexity()
        bar.advance(2, "float perplexity")
        magnitudes, curves = {}, []
        for layer, found in subject.layers(lambda: bar.advance(1, "exponents")):
            magnitudes[layer] = {name: seen.mean_absolute() for name, seen in found.items()}
            curves += exponents.layer_curves(subject, layer, found)
        rows = salient.measure_salient(
            subject, magnitudes, lambda: bar.advance(1, "salient channels")
        )
        calibrated = (
            calibration_runs.measure_calibration(
                subject, model, texts, counts, wanted, lambda: bar.advance(4, "calibration")
            )
            if counts
            else []
        )
    analysis = Analysis(
        name=source.checkpoint.name,
        settings=settings,
        float_perplexity=baseline.value,
        tokens=baseline.tokens,
        salient=rows,
        curves=curves,
        calibration=calibrated,
    )
    with whole_file(place) as page:
        page.write(write_html(analysis).encode())
    output.table(
        ("channels in fp16", "share", "perplexity"),
        [(row.rule, f"{100 * row.share:g} %", f"{row.perplexity:.3f}") for row in rows],
    )
    output.line(f"float {baseline.value:.3f}; the whole report: {report}")
    output.json({"report": str(report), **asdict(analysis)})


def _numbers(parts: list[str]) -> list[int]:
    if parts in ([], ["none"]):
        return []
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InvalidArgumentError(
            f"--sizes {','.join(parts)} is no list of positive whole numbers."
        )
    return numbers
