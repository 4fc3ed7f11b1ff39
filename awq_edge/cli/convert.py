"""``awq-edge convert``: from a Hugging Face checkpoint to one packed file, with a report."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from awq_edge.cli._interchange import import_quantised, report_export
from awq_edge.cli._options import Json, Quiet, file_path, listed
from awq_edge.cli._output import Output, Progress
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantities import duration_text, parse_size, size_text

if TYPE_CHECKING:
    from awq_edge.conversion import LayerReport, Report

# What --from-awq has no use for, by parameter and option.
_OF_CALIBRATION = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "method",
        "effort",
        "bits",
        "group_size",
        "size",
        "calibration",
        "calibration_images",
        "vision_bits",
        "samples",
        "sequence_length",
        "seed",
        "device",
        "without",
    )
}
_OF_WIDTHS = {"bits": "--bits", "head_bits": "--head-bits", "embedding_bits": "--embedding-bits"}
_OF_TEXT = ("calibration", "samples", "sequence_length", "seed")
# About what the layers are of the time where learning follows.
_OF_LAYERS = 0.3
# The context whose keys and values the table of boards counts.
_CONTEXT = 2048


def convert(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's directory, a GGUF file of llama.cpp's, or a hub id.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", parser=file_path, help="The file to write."),
    ],
    method: Annotated[
        str,
        typer.Option(help="auto (the most accurate), awq, awq+gptq, gptq, or rtn: to nearest."),
    ] = "auto",
    effort: Annotated[
        str,
        typer.Option(
            help="normal, or high: after the method auto codes and scales of all layers together "
            "learn what the float model predicts, from four times the samples; kept only where "
            "text put aside says so. A file of the same size and speed, nearer to the float model, "
            "for some three times the time on a GPU and far more on a CPU."
        ),
    ] = "normal",
    bits: Annotated[
        float,
        typer.Option(
            help="Bits of the decoder's weights: 2 to 6, 8, or a mean between them such as 3.5 "
            "that widths are mixed to. auto gives more to matrices where it pays most, for 8 % "
            "more bytes at most."
        ),
    ] = 4,
    group_size: Annotated[
        Optional[int],
        typer.Option(help="Inputs that share a scale: 32, 64 or 128; 64 at 2 bits, else 128."),
    ] = None,
    head_bits: Annotated[
        Optional[int],
        typer.Option(
            help="Bits of the head; by default what pays with auto below 8 bits, otherwise 6, and "
            "8 if it is the embedding too, beside --bits of more than 6, and with --from-awq."
        ),
    ] = None,
    embedding_bits: Annotated[
        Optional[int],
        typer.Option(
            help="Bits of the embedding; the same by default. A tied head takes the larger."
        ),
    ] = None,
    vision_bits: Annotated[
        int, typer.Option(help="Bits of a tower for pictures and of its connector.")
    ] = 8,
    size: Annotated[
        Optional[str],
        typer.Option(
            metavar="BYTES",
            help="Size of the file, such as 600MB: chooses all widths, the head's and the "
            "embedding's too.",
        ),
    ] = None,
    calibration: Annotated[
        Optional[Path],
        typer.Option(
            help="Text to calibrate on; by default texts of eight kinds, from prose to code."
        ),
    ] = None,
    calibration_images: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            help="Pictures to calibrate a tower on; by default 32 that are drawn for everybody.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration blocks.")] = 160,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a block.")] = 512,
    seed: Annotated[int, typer.Option(help="Which blocks are drawn from a long text.")] = 0,
    device: Annotated[str, typer.Option(help="Where calibration runs: cpu or cuda.")] = "cpu",
    without: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Leave a part of the method out, to see what it is worth: scales, clip, joint "
            "(the search of both together), asymmetry (of clip limits), grid, refinement, "
            "propagation (making up for the errors of the layers before), gradients (making up "
            "for the errors of other outputs), duo (scales of inputs and weights beside those of "
            "inputs alone), values (scaled where query heads share them) or widths (more bits "
            "where they pay most)."
        ),
    ] = None,
    from_awq: Annotated[
        bool,
        typer.Option(
            "--from-awq",
            help="MODEL is quantised already (AutoAWQ gemm or gemv, compressed-tensors): take over "
            "its codes, scales and zero-points; nothing is calibrated.",
        ),
    ] = False,
    export: Annotated[
        Optional[tuple[str, str]],
        typer.Option(
            "--export",
            metavar="KIND PATH",
            help="Also write an AutoAWQ directory (hf-awq DIR) or a stock llama.cpp file of the "
            "scaled weights (gguf FILE).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate a checkpoint and write one packed file. Run again to resume after Ctrl-C."""
    out = Output(as_json=as_json, quiet=quiet)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes: it writes and reports
    wanted = None
    if export is not None:
        from awq_edge.interchange.export import export_to

        wanted = export_to(*export)
    if from_awq:
        for option in _given(context, _OF_CALIBRATION):
            raise InvalidArgumentError(
                f"{option} means nothing with --from-awq, which takes over the checkpoint's own "
                "integers; leave one of the two out."
            )
        if not first:
            return
        import_quantised(
            model,
            output,
            embedding_bits=8 if embedding_bits is None else embedding_bits,
            head_bits=8 if head_bits is None else head_bits,
            force=force,
            export=wanted,
            output=out,
        )
        if wanted is not None:
            report_export(wanted, out)
        return
    if size is not None:
        for option in _given(context, _OF_WIDTHS):
            raise InvalidArgumentError(
                f"{option} means nothing with --size, which chooses every width; leave one of the "
                "two out."
            )
    if method == "rtn":
        for option in _given(context, {name: _OF_CALIBRATION[name] for name in _OF_TEXT}):
            out.status(f"{option} is not used: --method rtn reads no calibration text.")
    # PyTorch reads it once: memory in huge pages, for fresh small ones cost a tenth of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # And its threads spin for microseconds before they sleep: beside other busy programs the one
    # that they wait for often waits for a processor; alone, sleeping at once costs a fifth or more.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from awq_edge import conversion
    from awq_edge.outputs.workplace import resumable_path

    options = conversion.Options(
        method=method,
        effort=effort,
        bits=bits,
        group_size=group_size if group_size is not None else (64 if bits == 2 else 128),
        head_bits=head_bits,
        embedding_bits=embedding_bits,
        vision_bits=vision_bits,
        calibration_images=calibration_images,
        size=parse_size(size) if size is not None else None,
        calibration=calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        device=device,
        without=tuple(listed(without or ())),
    )
    started = time.monotonic()
    listener = _Listener(1.0 if effort == "normal" else _OF_LAYERS)
    partial = resumable_path(output)
    try:
        with out.progress("Converting", 1.0) as bar:
            listener.bar = bar
            events = conversion.Events(
                message=bar.line,
                note=bar.note,
                layer_done=listener.layer_done,
                step_done=listener.step_done,
            )
            report = conversion.convert(
                model, output, options, force=force, events=events, export=wanted
            )
    except BaseException as error:
        if first and partial.exists() and (listener.done or isinstance(error, KeyboardInterrupt)):
            after = f"after layer {listener.done} of {listener.layers}"
            how = "Interrupted" if isinstance(error, KeyboardInterrupt) else "Stopped"
            out.status(
                f"{how} {after if listener.done else 'at the first layer'}; "
                "the same command continues there."
            )
        raise
    if first:
        _print_report(out, report, time.monotonic() - started)
        if wanted is not None:
            report_export(wanted, out)


def _given(context: typer.Context, options: Mapping[str, str]) -> Iterator[str]:
    """Those options, by parameter, that stand on the command line."""
    for name, option in options.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            yield option


class _Listener:
    """Moves the progress bar from layer to layer."""

    def __init__(self, of_layers: float) -> None:
        """Takes the share of the work that the layers are; the rest is learning."""
        self.bar: Optional[Progress] = None
        self._of_layers = of_layers
        self.done = 0
        self.layers = 0

    def layer_done(self, report: "LayerReport", layers: int) -> None:
        """Hears of a finished layer, or of one that an earlier run finished."""
        self.done, self.layers = report.layer + 1, layers
        note = f"layer {self.done}/{layers}"
        if report.error is not None and report.error_rtn is not None:
            note += f", error {report.error_rtn:.4f} → {report.error:.4f}"
        if self.bar is not None:
            self.bar.advance(self._of_layers / layers, note)

    def step_done(self, done: int, steps: int, divergence: float) -> None:
        """Hears of a step of learning."""
        if self.bar is not None:
            note = f"learning, step {done}/{steps}, divergence {divergence:.4f}"
            self.bar.advance((1 - self._of_layers) / steps, note)


def _print_report(out: Output, report: "Report", seconds: float) -> None:
    boards = _boards(report)
    if out.as_json:
        out.json(_document(report, seconds, boards))
        return
    if any(layer.error is not None for layer in report.layers):
        chosen = [_columns(layer) for layer in report.layers]
        groups = sorted({group for columns in chosen for group in columns})
        rows = [
            [layer.layer, f"{layer.error_rtn:.4f}", f"{layer.error:.4f}"]
            + [columns.get(group, "1") for group in groups]
            for layer, columns in zip(report.layers, chosen)
        ]
        out.table(["layer", "error, rounded", "calibrated", *groups], rows)
        out.line(
            "Errors are relative to what a layer adds; exponents: p plain, d duo, c of an error's "
            "cost, 1 unscaled."
        )
    _print_experts(out, report)
    if report.held_out:
        out.table(
            ["text", "calibrated on", "divergence, held out"],
            [
                [kind, f"{blocks} blocks", f"{report.held_out[kind]:.4f}"]
                for kind, blocks in report.texts.items()
                if kind in report.held_out
            ],
        )
        out.line("Divergence from the float model in nats, on a part of each text put aside.")
    if report.rounds:
        _print_rounds(out, report.rounds)
    if report.predicted is not None:
        out.line(f"Expected of the chosen widths, over all texts: {report.predicted:.4f} nats.")
    context = min(_CONTEXT, report.architecture.context_length)
    out.table(
        ["device", "RAM", "needed", "tokens/s, at most"],
        [
            [
                board["title"],
                "/".join(f"{size}" for size in board["ram_gib"]) + " GiB"
                if board["ram_gib"]
                else "",
                size_text(board["needed_bytes"]) + ("" if board["fits"] else ", does not fit"),
                f"{board['roofline']:.0f}" if board["roofline"] else "unknown",
            ]
            for board in boards
        ],
    )
    out.line(
        f"Needed: weights and the keys and values of {context} tokens. At most: what the memory's "
        "read rate allows."
    )
    out.fields(
        {
            "file": f"{report.path}, {size_text(report.file_bytes)}",
            "bits per weight": f"{report.linear_bits_per_weight:.2f} in the decoder's matrices, "
            f"{report.file_bits_per_weight:.2f} over the whole file",
            **({"for pictures": size_text(report.vision_bytes)} if report.vision_bytes else {}),
            "time": duration_text(seconds),
        },
        "Written",
    )


def _print_rounds(out: Output, rounds: list[float]) -> None:
    """What learning was worth."""
    begun, best = rounds[0], min(rounds)
    became = f"to {best:.4f}" if best < begun else "no further: the file is what auto gave"
    out.line(f"Learned: divergence on blocks put aside, in nats, from {begun:.4f} {became}.")


def _print_experts(out: Output, report: "Report") -> None:
    """What became of experts that few tokens reach, and of the routers' choices."""
    layers = [(layer.layer, layer.experts) for layer in report.layers if layer.experts is not None]
    if not layers:
        return
    out.table(
        ["layer", "least used", "topped up", "unreached", "other choices"],
        [
            [
                number,
                f"{100 * experts.least_share:.2f} %",
                experts.topped_up,
                experts.unreached,
                "unknown" if experts.turned is None else f"{100 * experts.turned:.1f} %",
            ]
            for number, experts in layers
        ],
    )
    out.line(
        "Experts: the smallest share of a sample's choices; how many too few tokens chose, so that "
        "those of their next highest probabilities served too; how many none could reach, which "
        "are rounded to nearest; tokens whose choice is another than the float model's."
    )


def _columns(layer: "LayerReport") -> dict[str, str]:
    """What was chosen for each stage; of all experts the smallest exponent and the largest."""
    columns, experts = {}, []
    for group, choice in layer.choices.items():
        if group.startswith("expert."):
            experts.append(choice)
        else:
            columns[group] = _choice_text(choice)
    if experts:
        ordered = sorted(experts, key=lambda choice: (choice.kind != "none", choice.exponent))
        first, last = _choice_text(ordered[0]), _choice_text(ordered[-1])
        columns["experts' down"] = first if first == last else f"{first} to {last}"
    return columns


_KINDS = {"plain": "p", "duo": "d", "pivots": "c"}


def _choice_text(choice: Any) -> str:
    if choice is None or choice.kind == "none":
        return "1"
    return f"{_KINDS[choice.kind]} {choice.exponent:.2f}"


def _boards(report: "Report") -> list[dict[str, Any]]:
    """What every known device needs and can reach at best."""
    from awq_edge.profiles import load_profiles

    context = min(_CONTEXT, report.architecture.context_length)
    needed = report.file_bytes + report.cache_bytes(context)
    return [
        {
            "name": profile.name,
            "title": profile.title,
            "ram_gib": list(profile.ram_gib),
            "needed_bytes": needed,
            "fits": not profile.ram_gib or needed < max(profile.ram_gib) * 2**30,
            "roofline": profile.decode_roofline(report.decode_bytes),
        }
        for target in load_profiles()
        for profile in target.devices()
    ]


def _document(report: "Report", seconds: float, boards: list[dict[str, Any]]) -> dict[str, Any]:
    import dataclasses

    return {
        "file": str(report.path),
        "file_bytes": report.file_bytes,
        "bits_per_weight": {
            "linears": report.linear_bits_per_weight,
            "file": report.file_bits_per_weight,
        },
        "decode_bytes": report.decode_bytes,
        "vision_bytes": report.vision_bytes,
        "seconds": seconds,
        "layers": [dataclasses.asdict(layer) for layer in report.layers],
        "texts": report.texts,
        "held_out": report.held_out,
        "predicted": report.predicted,
        "rounds": report.rounds,
        "devices": boards,
    }
