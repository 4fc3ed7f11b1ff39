"""A checkpoint seen through its converter: our tensor names, our Architecture, float32.

Owns the pairing of the two. Refuses to know a family or a file format: ``awq_edge.converters`` and
``awq_edge.checkpoints`` do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from awq_edge.architecture import Architecture
from awq_edge.checkpoints import Checkpoint, open_checkpoint
from awq_edge.converters import Converter, find  # type: ignore[import-not-found,unused-ignore]
from awq_edge.errors import CheckpointError
from awq_edge.torch_decoder import LINEARS, layer_tensor_names, tensor_shape

_ROWS = 8192  # of a matrix, read at once where only some are wanted


class FloatModel:
    """A float model, read one tensor at a time; calling it makes it a WeightSource."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Finds the converter for a checkpoint and checks that no tensor is missing.

        Raises:
            UnsupportedError: No converter for its family, or something in it is not supported.
            CheckpointError: A tensor is missing.
        """
        self.checkpoint = checkpoint
        self._converter: Converter = find(checkpoint.config)
        self.architecture: Architecture = self._converter.architecture(checkpoint.config)
        for name in self.tensor_names():
            checkpoint.check(self._converter.checkpoint_name(name), self.shape(name))
        refuse_stray_biases(checkpoint, self._converter, self.architecture)

    def tensor_names(self) -> list[str]:
        """Our names of every tensor that the checkpoint must hold."""
        names = ["token_embd.weight", "output_norm.weight"]
        if not self.architecture.tied_head:
            names.append("output.weight")
        for layer in range(self.architecture.layers):
            names += [f"blk.{layer}.{name}" for name in layer_tensor_names(self.architecture)]
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        return tensor_shape(self.architecture, name)

    def __call__(self, name: str, device: torch.device | None = None) -> torch.Tensor:
        """Reads a tensor by our name, float32, into the memory of a device or of the CPU."""
        if name == "rope.inverse_frequencies":
            return torch.from_numpy(self.architecture.inverse_frequencies()).to(device)
        stored = self._converter.checkpoint_name(name)
        return self.checkpoint.tensor(stored, self.shape(name), device)

    def row_blocks(self, name: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Reads a matrix a block of rows at a time, as ``Checkpoint.row_blocks`` does."""
        n, k = self.shape(name)
        return self.checkpoint.row_blocks(self._converter.checkpoint_name(name), (n, k), rows)

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix, float32 [.., k] for their numbers, int64 [..]."""
        rows = torch.empty(*numbers.shape, self.shape(name)[1])
        for first, block in self.row_blocks(name, _ROWS):
            inside = (numbers >= first) & (numbers < first + len(block))
            rows[inside] = block[numbers[inside] - first]
        return rows

    def layer(self, index: int, device: torch.device | None = None) -> dict[str, torch.Tensor]:
        """Every tensor of one layer, by its name without ``blk.N.``."""
        names = layer_tensor_names(self.architecture)
        return {name: self(f"blk.{index}.{name}", device) for name in names}


def refuse_stray_biases(
    checkpoint: Checkpoint, converter: Converter, architecture: Architecture
) -> None:
    """Refuses biases that config.json does not announce, unless all are zero, as some tools write.

    Raises:
        CheckpointError: One is there that would be lost.
    """
    announced = layer_tensor_names(architecture)
    for layer in range(architecture.layers):
        for matrix in LINEARS:
            if f"{matrix}.bias" in announced:
                continue
            name = str(converter.checkpoint_name(f"blk.{layer}.{matrix}.bias"))
            if name in checkpoint and bool(checkpoint.stored(name).any()):
                raise CheckpointError(
                    f"{checkpoint.directory} holds {name}, but its config.json says that there is "
                    "no such bias; one of the two is wrong."
                )


def open_float_model(model: str) -> FloatModel:
    """Opens a directory or a hub id; reads no weights but biases that should not be there."""
    return FloatModel(open_checkpoint(model))
