"""The tensors of a checkpoint by our names, as the decoder of its family needs them.

Owns the pairing of a checkpoint with its converter: which tensor is the head, what queries are
multiplied by, and biases that nobody announced. Refuses to know a family or a kind of file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from awq_edge.architecture import Architecture
from awq_edge.checkpoints.checkpoint import Checkpoint
from awq_edge.converters import Converter, Slice, Stored, find
from awq_edge.converters.cross_part import cross_part
from awq_edge.errors import CheckpointError
from awq_edge.stages import tensor_names, tensor_shape

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_FREQUENCIES = "rope.inverse_frequencies"  # of no checkpoint: the record knows them
_ROWS = 8192  # of the embedding and the head, compared at once


def _of_block(name: str) -> tuple[int, str] | None:
    """The layer behind a gated block, and its tensor's name; None for one of another part."""
    parts = name.split(".", 2)
    if len(parts) < 3 or not parts[2].startswith("cross_"):
        return None
    return int(parts[1]), parts[2]


class DecoderTensors:
    """Our names for a checkpoint's tensors.

    Attributes:
        checkpoint: Whose.
        architecture: The decoder; its head is tied if the checkpoint holds one table for both.
    """

    def __init__(
        self, checkpoint: Checkpoint, is_integer: Callable[[str], bool] = lambda _: False
    ) -> None:
        """Finds the converter of a checkpoint, and what its head is.

        Args:
            checkpoint: An open one.
            is_integer: Whether the matrix of a checkpoint's name lies there in integers.

        Raises:
            UnsupportedError: No converter for its family, or something in it is not supported.
            CheckpointError: It contradicts its configuration.
        """
        self.checkpoint = checkpoint
        self._converter: Converter = find(checkpoint.config)
        checkpoint.also_called(self._converter.other_names)
        self._names: dict[str, str] = {}  # where they are not the converter's
        self.architecture: Architecture = self._converter.architecture(checkpoint.config)
        self.architecture = self._with_its_head(self.architecture, is_integer)
        if any(name in checkpoint for name in self.activation_scales()):
            self.architecture = dataclasses.replace(self.architecture, activation_scales=True)
        self._cross = None
        if checkpoint.vision is not None:
            self._cross = cross_part(checkpoint.vision.config)
        if self._cross is not None:
            self.architecture = dataclasses.replace(self.architecture, cross=self._cross.record)
        self._refuse_stray_biases()

    def activation_scales(self) -> list[str]:
        """The checkpoint's names of what may divide each layer's activation."""
        if "blk.N.ffn_act" not in self._converter.names:
            return []
        layers = range(self.architecture.layers)
        return [self._converter.checkpoint_name(f"blk.{n}.ffn_act.scales") for n in layers]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        return tensor_shape(self.architecture, name)

    def stored_name(self, name: str) -> str:
        """The checkpoint's name of one of our tensors."""
        block = _of_block(name)
        if block is not None and self._cross is not None:
            return str(self._cross.stored_name(*block))
        return self._names.get(name) or str(self._converter.checkpoint_name(name))

    def changes(self, name: str) -> Stored:
        """What makes the checkpoint's numbers ours."""
        if name == _FREQUENCIES:
            return Stored(values=self.architecture.inverse_frequencies())
        if _of_block(name) is not None:
            return Stored()
        return self._converter.changes(self.checkpoint.config, self.architecture, name)

    def tensor(self, name: str, device: torch.device | None = None) -> torch.Tensor:
        """Reads a tensor by our name, float32, into the memory of a device or of the CPU."""
        change = self.changes(name)
        if change.values is not None:
            return torch.from_numpy(change.values).to(device)
        shape = self.stored_shape(name)
        within = self._slice(name)
        if within is not None:
            rows = slice(within.first_row, within.first_row + shape[0])
            return self.checkpoint.matrix_of_many(
                within.name, within.shape, within.matrix, rows, device
            )
        parts = [
            self.checkpoint.tensor(part, shape, device) for part in self._stored_names(name, change)
        ]
        values = torch.cat(parts) if change.parts else parts[0]
        if change.rows is not None:
            values = values[torch.from_numpy(change.rows).to(values.device)]
        if change.inverted:
            if not bool((values > 0).all()):
                raise CheckpointError(
                    f"The tensor {self.stored_name(name)} divides by what is not positive."
                )
            values = 1.0 / values
        values = self._changed(values, change)
        if change.row_factors is not None:
            factors = torch.from_numpy(change.row_factors).to(values.device)
            values = values * factors.reshape(-1, *[1] * (values.ndim - 1))
        gate = self._gate(name)
        if gate is not None:
            values = values * self._gate_values(gate, len(values)).to(values.device)
        return values.reshape(self.shape(name))

    def _gate(self, name: str) -> str | None:
        """What a matrix of a gated block is multiplied by the hyperbolic tangent of."""
        block = _of_block(name)
        return None if block is None or self._cross is None else self._cross.gate(*block)

    def _gate_values(self, gate: str, rows: int) -> torch.Tensor:
        """Factors of so many rows, float32 [rows, 1], or [1, 1] for all of them."""
        values = self.checkpoint.stored(gate).flatten()
        if len(values) not in (1, rows):
            raise CheckpointError(
                f"The gate {gate} of {self.checkpoint.directory} has {len(values)} numbers; 1 or "
                f"{rows} are needed."
            )
        return values.double().tanh().float()[:, None]

    def row_blocks(self, name: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Reads a matrix a block of rows at a time, as ``Checkpoint.row_blocks`` does."""
        n, k = self.stored_shape(name)
        change = self.changes(name)
        for first, block in self.checkpoint.row_blocks(self.stored_name(name), (n, k), rows):
            yield first, self._changed(block, change)

    def check(self, name: str) -> None:
        """Refuses a tensor that is missing or has another shape; reads no weights."""
        change = self.changes(name)
        if change.values is not None:
            return
        within = self._slice(name)
        if within is not None:
            self.checkpoint.check(within.name, within.shape)
            return
        for part in self._stored_names(name, change):
            self.checkpoint.check(part, self.stored_shape(name))
        if change.product is not None:
            self.checkpoint.check(change.product.name, change.product.shape)
        gate = self._gate(name)
        if gate is not None and gate not in self.checkpoint:
            raise CheckpointError(
                f"The checkpoint {self.checkpoint.directory} has no tensor {gate}."
            )

    def _slice(self, name: str) -> Slice | None:
        """Where a tensor lies among others in one, if the checkpoint holds it so."""
        stored = self.stored_name(name)
        within = self._converter.stacked(self.architecture, name, stored)
        if within is None or stored in self.checkpoint or within.name not in self.checkpoint:
            return None
        return within

    def _stored_names(self, name: str, change: Stored) -> list[str]:
        """The tensors that hold one of ours."""
        stored = self.stored_name(name)
        if not change.parts:
            return [stored]
        return [stored.replace(".A.", f".{part}.") for part in range(change.parts)]

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor of one of ours; of each, if it is in parts."""
        shape, change = self.shape(name), self.changes(name)
        if change.columns:
            shape = (shape[0] // change.columns, change.columns)
        if change.product is not None:
            shape = (shape[0], change.product.shape[1 if change.product.transposed else 0])
        rows = shape[0] if change.rows is None else change.all_rows
        return (rows // (change.parts or 1), *shape[1:])

    def _changed(self, values: torch.Tensor, change: Stored) -> torch.Tensor:
        if change.factor != 1:
            values = values * change.factor
        if change.offset:
            values = values + change.offset
        if change.product is not None:
            matrix = self.checkpoint.tensor(change.product.name, change.product.shape)
            matrix = matrix.to(values.device)
            values = values @ (matrix.T if change.product.transposed else matrix)
        return values

    def _with_its_head(
        self, architecture: Architecture, is_integer: Callable[[str], bool]
    ) -> Architecture:
        """A tied head is one that is not stored, or stored with the embedding's numbers.

        Of a table that both are made of, the one that is stored serves for the other.
        """
        head, embedding = (
            str(self._converter.checkpoint_name(name)) for name in (_HEAD, _EMBEDDING)
        )
        if not architecture.tied_head:
            if self._converter.shares_table(self._converter.config(self.checkpoint.config)):
                if embedding not in self.checkpoint and head in self.checkpoint:
                    self._names[_EMBEDDING] = head
                elif head not in self.checkpoint and not is_integer(head):
                    self._names[_HEAD] = embedding
            return architecture
        if is_integer(head):
            return dataclasses.replace(architecture, tied_head=False)
        if head not in self.checkpoint:
            return architecture
        if embedding not in self.checkpoint:
            self._names[_EMBEDDING] = head
            return architecture
        shape = (architecture.vocabulary_size, architecture.hidden_size)
        pairs = zip(*(self.checkpoint.row_blocks(n, shape, _ROWS) for n in (head, embedding)))
        same = all(torch.equal(a, b) for (_, a), (_, b) in pairs)
        return dataclasses.replace(architecture, tied_head=same)

    def _refuse_stray_biases(self) -> None:
        """Refuses biases that config.json does not announce, unless all are zero.

        Some tools write such.
        """
        announced = tensor_names(self.architecture)
        for name in {**dict.fromkeys(announced), _HEAD: None}:
            stem, _, kind = name.rpartition(".")
            bias = f"{stem}.bias"
            if kind != "weight" or bias in announced:
                continue
            for stored in self._stored_names(bias, self.changes(bias)):
                if stored in self.checkpoint and bool(self.checkpoint.stored(stored).any()):
                    raise CheckpointError(
                        f"{self.checkpoint.directory} holds {self.checkpoint.called(stored)}, but "
                        f"{self.checkpoint.configured_by} says that there is no such bias; one of "
                        "the two is wrong."
                    )
