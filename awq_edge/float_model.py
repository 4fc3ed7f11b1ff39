"""A checkpoint of floats: our tensor names, our Architecture, float32, one tensor at a time.

Owns that every tensor of the decoder is there before any work. Refuses to know a family or a file
format: ``awq_edge.converters`` and ``awq_edge.checkpoints`` do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from awq_edge.architecture import Architecture
from awq_edge.checkpoints import Checkpoint, DecoderTensors, open_checkpoint
from awq_edge.checkpoints.vision_tensors import VisionTensors
from awq_edge.converters.vision_part import TEXT_ALONE, vision_part
from awq_edge.stages import layer_tensor_names, tensor_names
from awq_edge.torch_decoder import LookedAt, Positions

_ROWS = 8192  # of a matrix, read at once where only some are wanted


class FloatModel:
    """A float model, read one tensor at a time; calling it makes it a WeightSource.

    Attributes:
        checkpoint: Where its tensors are.
        architecture: Its decoder.
        pictures: What gated blocks make of calibration pictures, rows float32 [p, m, row size];
            None: there are none, and calibration texts see nothing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Finds the converter for a checkpoint and checks that no tensor is missing.

        Raises:
            UnsupportedError: No converter for its family, or something in it is not supported.
            CheckpointError: A tensor is missing.
        """
        self.checkpoint = checkpoint
        self.pictures: torch.Tensor | None = None
        self._tensors = DecoderTensors(checkpoint)
        self.architecture: Architecture = self._tensors.architecture
        for name in self.tensor_names():
            self._tensors.check(name)

    def tensor_names(self) -> list[str]:
        """Our names of every tensor of the decoder, in the order of a model file."""
        return tensor_names(self.architecture)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        return self._tensors.shape(name)

    def __call__(self, name: str, device: torch.device | None = None) -> torch.Tensor:
        """Reads a tensor by our name, float32, into the memory of a device or of the CPU."""
        return self._tensors.tensor(name, device)

    def row_blocks(self, name: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Reads a matrix a block of rows at a time, as ``Checkpoint.row_blocks`` does."""
        return self._tensors.row_blocks(name, rows)

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix, float32 [.., k] for their numbers, int64 [..]."""
        rows = torch.empty(*numbers.shape, self.shape(name)[1])
        for first, block in self.row_blocks(name, _ROWS):
            inside = (numbers >= first) & (numbers < first + len(block))
            rows[inside] = block[numbers[inside] - first]
        return rows

    def positions(self, count: int, device: torch.device | None = None) -> Positions:
        """Those of a calibration text; its parts look at one picture after the other."""
        positions = Positions.of(self.architecture, count, self, device)
        if self.pictures is None or self.architecture.cross is None:
            return positions
        seen = torch.arange(count) * len(self.pictures) // count
        rows = self.pictures.to(device)
        looked_at = LookedAt.of_rows(self.architecture.cross, rows, seen)
        return dataclasses.replace(positions, looked_at=looked_at)

    def layer(self, index: int, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        """Every tensor of one layer, by its name without ``blk.N.``."""
        names = layer_tensor_names(self.architecture, index)
        return {name: self(f"blk.{index}.{name}", device) for name in names}


def open_vision_part(model: FloatModel) -> tuple[VisionTensors | None, str]:
    """The tower of a float model, if it has one that a file can hold.

    Returns:
        The tower, and else why a model that has one is converted without it; empty: it has none.

    Raises:
        AwqEdgeError: Something is wrong with it.
    """
    checkpoint = model.checkpoint.vision
    if checkpoint is None:
        return None, ""
    why = TEXT_ALONE.get(str(checkpoint.config.get("model_type")), "")
    part = vision_part(checkpoint.config, model.architecture.hidden_size)
    if part is None:
        return None, why
    return VisionTensors(checkpoint, part), ""


def open_float_model(model: str) -> FloatModel:
    """Opens a directory or a hub id; reads no weights but a head that may be the embedding.

    Biases that should not be there are read too.
    """
    return FloatModel(open_checkpoint(model))
