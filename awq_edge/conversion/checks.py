"""What is refused before any work is done: outputs, disks and devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from awq_edge.architecture import Architecture
from awq_edge.calibration import gradients
from awq_edge.conversion.options import Options
from awq_edge.errors import FileUnreadableError, InvalidArgumentError, UnsupportedError
from awq_edge.model_file import check_place
from awq_edge.quantities import size_text
from awq_edge.quantize import coupling
from awq_edge.stages import input_width, matrices, stages, tensor_shape


def check_output(output: Path, force: bool) -> None:
    """Refuses an output that could not be written in the end, before any work."""
    if output.is_dir():
        raise InvalidArgumentError(f"{output} is a directory; give the name of a file in it.")
    if output.exists() and not force:
        raise InvalidArgumentError(f"{output} exists already; add --force to replace it.")
    check_place(output)


def check_disk(
    output: Path, architecture: Architecture, options: Options, blocks: torch.Tensor | None
) -> None:
    """Refuses a conversion that would fill the disk in the end."""
    overhead = 24 / options.group_size
    tables = architecture.vocabulary_size * architecture.hidden_size
    packed = (
        architecture.linear_parameters() * (options.bits + overhead)
        + tables * (options.embedding_bits + overhead)
        + (0 if architecture.tied_head else tables * (options.head_bits + overhead))
    ) / 8
    # A layer's input and output, and what those of its stages read that do not read the stream; the
    # same once more for half of the blocks with float states.
    widths = 2 * architecture.hidden_size + max(
        sum(input_width(architecture, s) for s in stages(architecture, layer) if s.made_of)
        for layer in range(architecture.layers)
    )
    hidden = 0 if blocks is None else 6 * blocks.numel() * widths
    if blocks is not None and any(options.plan(bits).coupled for bits in options.widths):
        hidden += _gradient_bytes(architecture, blocks)
    needed = 2 * packed + hidden  # the work directory and the file itself
    partial = output.with_name(output.name + ".partial")  # goes, or counts among what is needed
    there = sum(path.stat().st_size for path in partial.glob("*")) if partial.is_dir() else 0
    free = shutil.disk_usage(output.parent).free + there
    if free < needed:
        raise FileUnreadableError(
            f"The disk that holds {output} is too full: the conversion needs {size_text(needed)}, "
            f"{size_text(free)} are free."
        )


def _gradient_bytes(architecture: Architecture, blocks: torch.Tensor) -> int:
    """What the walk back through the float model leaves: states, then moments of every layer."""
    a = architecture
    tokens = len(gradients.chosen(len(blocks))) * blocks.shape[1]
    moments = 0
    for layer in range(a.layers):
        for name in matrices(a, layer):
            count, length = coupling.runs(tensor_shape(a, f"{name}.weight")[0])
            moments += count * length**2
    return 4 * ((a.layers + 1) * tokens * a.hidden_size + moments)


def device_named(name: str) -> torch.device:
    """The device that calibration runs on."""
    if name not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"The device {name!r} is none of cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "This PyTorch sees no CUDA device; leave --device out to use the CPU."
        )
    return torch.device(name)
