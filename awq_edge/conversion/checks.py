"""What is refused before any work is done: outputs, disks and devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from awq_edge.architecture import Architecture
from awq_edge.calibration import gradients
from awq_edge.calibration.pictures import files_of
from awq_edge.checkpoints import Checkpoint
from awq_edge.conversion.manifest import read_manifest
from awq_edge.conversion.options import WIDENED, Options
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.interchange.export import Export
from awq_edge.outputs.place import Identity, Place, check_name, check_room
from awq_edge.outputs.workplace import is_ours, remove_rest, resumable_path
from awq_edge.quantize import coupling
from awq_edge.stages import (
    coupled_matrices,
    input_width,
    is_kept,
    stages,
    tensor_names,
    tensor_shape,
)


def place_of(output: Path, force: bool) -> Place:
    """Refuses an output that could not be written in the end, before any work.

    Args:
        output: The model file.
        force: Whether it may replace one.
    """
    check_name(output)
    remove_rest(output, resumable_path(output))
    left = read_manifest(output)
    # A conversion that was interrupted between its file and its export goes on.
    made = left is not None and left.model is not None and left.model == Identity.of(output)
    return Place(output, replace=force or made)


def check_export(export: Export, output: Path) -> None:
    """Refuses an export of a conversion that could not be written in the end, before any work."""
    check_name(export.path)
    named = {os.path.realpath(place) for place in (output, export.path)}
    work = os.path.realpath(resumable_path(output))
    if len(named) == 1 or os.path.realpath(export.path) == work:
        raise InvalidArgumentError(
            f"The packed file and the export cannot both be {export.path}; choose another name for "
            "the export."
        )
    left = read_manifest(output)
    if left is None or left.export is None or left.export != Identity.of(export.path):
        export.check_place()


def inputs_of(checkpoint: Checkpoint, options: Options) -> dict[str, list[Path]]:
    """Every file that a conversion reads, by what it is.

    Args:
        checkpoint: An open one.
        options: With the calibration text and pictures.
    """
    inputs = {"the checkpoint": checkpoint.files()}
    if options.calibration is not None:
        inputs["the calibration text"] = [options.calibration]
    if options.calibration_images is not None:
        inputs["the calibration pictures"] = files_of(options.calibration_images)
    return inputs


def check_disk(
    output: Path,
    architecture: Architecture,
    options: Options,
    blocks: torch.Tensor | None,
    learned: torch.Tensor | None,
    export: Export | None,
) -> None:
    """Refuses a conversion that would fill a disk in the end.

    Args:
        output: The file that is made.
        architecture: The decoder.
        options: How.
        blocks: Calibration tokens, int64 [b, t]; None for a method that needs none.
        learned: Those that are learned from; None: nothing learns.
        export: What else is written.
    """
    overhead = 24 / options.group_size
    tables = architecture.vocabulary_size * architecture.hidden_size
    embedding_bits, head_bits = options.tables(tied=architecture.tied_head)
    packed = (
        architecture.linear_parameters() * (options.bits + overhead)
        + tables * (embedding_bits + overhead)
        + (0 if architecture.tied_head else tables * (head_bits + overhead))
    ) / 8
    packed *= 1 if options.mixed or not options.measured else WIDENED
    shapes = (tensor_shape(architecture, name) for name in tensor_names(architecture))
    packed += 4 * sum(shape[0] for shape in shapes if len(shape) == 1)  # a table of positions
    # A layer's input and output, and what is kept of what its stages read; the same once more for
    # half of the blocks with float states.
    widths = 2 * architecture.hidden_size + max(
        sum(input_width(architecture, s) for s in stages(architecture, layer) if is_kept(s))
        for layer in range(architecture.layers)
    )
    hidden = 0 if blocks is None else 6 * blocks.numel() * widths
    if blocks is not None and any(options.plan(bits).coupled for bits in options.widths):
        hidden += _gradient_bytes(architecture, blocks)
    needed = 2 * packed + hidden  # the work directory and the file itself
    if learned is not None:
        needed += _learning_bytes(architecture, learned, options)
    if blocks is not None and architecture.experts:
        # Changed ones of a layer that have no room in memory.
        experts = 3 * architecture.experts * architecture.expert_size * architecture.hidden_size
        needed += 4 * experts
    needs = []
    if export is not None:
        needs.append((export.path, export.size_bytes(architecture, options.group_size)))
        if export.of_scaled_weights:
            needed += 2 * architecture.linear_parameters()
    partial = resumable_path(output)
    there = 0  # goes, or counts among what is needed
    if is_ours(partial):
        there = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(partial))
    check_room([(output, max(int(needed) - there, 0)), *needs])


def _gradient_bytes(architecture: Architecture, blocks: torch.Tensor) -> int:
    """What the walk back through the float model leaves: states, then moments of every layer."""
    a = architecture
    tokens = len(gradients.chosen(len(blocks))) * blocks.shape[1]
    moments = 0
    for layer in range(a.layers):
        for name in coupled_matrices(a, layer):
            count, length = coupling.runs(tensor_shape(a, f"{name}.weight")[0])
            moments += count * length**2
    return 4 * ((a.layers + 1) * tokens * a.hidden_size + moments)


def _learning_bytes(architecture: Architecture, blocks: torch.Tensor, options: Options) -> int:
    """What lies in files while a model learns: the float one's last states, what 3 rounds left."""
    weights = architecture.linear_parameters()
    rounds = 3 * (2 * weights + 4 * weights // options.group_size)
    return 4 * blocks.numel() * architecture.hidden_size + rounds


def device_named(name: str) -> torch.device:
    """The device that calibration runs on."""
    if name not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"The device {name!r} is none of cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "This PyTorch sees no CUDA device; leave --device out to use the CPU."
        )
    return torch.device(name)
