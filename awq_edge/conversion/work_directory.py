"""The work directory ``<output>.partial``: finished tensors and hidden states.

Owns what an interrupted conversion leaves and how the next one takes it up. It outlives a killed
process, and Ctrl-C or a full disk once a layer is finished; not an input that cannot be converted.
What the manifest (``manifest.py``) names is on the medium before. Refuses directories without our
mark: ``awq_edge.outputs.workplace``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_edge import model_file
from awq_edge.architecture import MetadataValue
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.conversion.manifest import (
    MANIFEST_NAME,
    Manifest,
    States,
    Sum,
    Summed,
    are_sound,
    read_manifest,
    sum_of,
)
from awq_edge.conversion.report import Events, LayerReport
from awq_edge.errors import (
    AwqEdgeError,
    CheckpointError,
    FileInvalidError,
    UnsupportedError,
)
from awq_edge.outputs.place import Identity, sync, sync_directory, write_error
from awq_edge.outputs.workplace import Workplace, opened, resumable_path

_MODEL = "model"
# The next try with the same input would fail at the same place.
_OF_THE_INPUT = (CheckpointError, FileInvalidError, UnsupportedError)

Floats = npt.NDArray[np.float32]


class WorkDirectory:
    """Finished tensors, hidden states and the manifest that says what they belong to."""

    def __init__(
        self,
        output: Path,
        key: str,
        events: Events,
        *,
        scaled: bool = False,
        export: Path | None = None,
        resumable: bool = True,
        states_synced: bool = True,
    ) -> None:
        """A directory beside ``output``, for the conversion that ``key`` stands for.

        Args:
            output: The model file that is made.
            key: Changes with anything that changes a tensor.
            events: Who listens.
            scaled: Whether scaled weights are kept.
            export: What is made besides, when the model file has its name.
            resumable: Whether a later process may take up the layers.
            states_synced: Whether hidden states are put onto the medium with every layer. Without,
                a power cut (not a kill) makes the next process begin anew.
        """
        self._output = output
        self._events = events
        self._export = export
        self._resumable = resumable
        self._states_synced = states_synced
        self._place = Workplace(output, resumable_path(output))
        self._manifest = Manifest(key, scaled)
        self._written: dict[str, Sum] = {}  # files that are whole, named by the manifest or not
        self._unsynced: set[str] = set()

    def __enter__(self) -> WorkDirectory:
        """Takes up what an interrupted conversion left, if it was the same conversion."""
        try:
            there = self._place.take({MANIFEST_NAME: self._manifest.text()})
            if there and not self._taken_up():
                self._place.clear()
                self._write_manifest()
        except OSError as error:
            self._place.release()
            raise write_error(self._output, error) from error
        if not there or not self._worth_keeping() or self._manifest.model is not None:
            return self
        self._events.message(
            f"Resuming after layer {len(self.layers)} of an interrupted conversion."
            if self.layers
            else "Resuming at the first layer of an interrupted conversion."
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Keeps what is worth it unless all is done; words a failed write."""
        done = kind is None or (self.has_output and (self._export is None or self.has_export))
        hopeless = isinstance(error, _OF_THE_INPUT) and not self.has_model
        if done or hopeless or not self._worth_keeping():
            self.finished()
        self._place.release()
        if isinstance(error, OSError) and not isinstance(error, AwqEdgeError):
            raise write_error(self._output, error) from error

    def finished(self) -> None:
        """Removes the directory."""
        self._place.remove()

    @property
    def layers(self) -> list[LayerReport]:
        """What is known of the finished ones."""
        return self._manifest.layers

    @property
    def bits(self) -> dict[str, int]:
        """Of every packed matrix, by its name; empty until :meth:`bits_chosen`."""
        return self._manifest.bits

    @property
    def divergence(self) -> float | None:
        """Expected of these bits, in nats; None if nothing was measured."""
        return self._manifest.divergence

    def bits_chosen(self, bits: Mapping[str, int], divergence: float | None) -> None:
        """Notes them; whatever is recorded next records them too."""
        self._manifest.bits, self._manifest.divergence = dict(bits), divergence

    @property
    def measured(self) -> bool:
        """Whether the moments of every unfinished layer are there."""
        return self._manifest.measured

    @property
    def folder(self) -> Path:
        """Where others may put what they need for a while."""
        return self._place.path

    @contextlib.contextmanager
    def matrix_file(self, name: str) -> Iterator[Summed]:
        """A file for the bytes of a packed matrix."""
        with self._new_file(f"{name}.packed") as file:
            yield file

    def store_vector(self, name: str, values: Floats) -> None:
        """Keeps a plain tensor."""
        self._store(f"{name}.npy", np.ascontiguousarray(values, dtype=np.float32))

    def store_scaled(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Keeps a layer's weights with their scales folded in: matrices as fp16, as exports do."""
        for name, values in weights.items():
            kept = values.cpu().half() if values.dim() == 2 else values.cpu()
            self._store(f"scaled.{layer}.{name}.npy", kept.numpy())

    def scaled(self, layer: int, name: str) -> Floats:
        """What :meth:`store_scaled` kept, float32."""
        kept: Floats = self._load(f"scaled.{layer}.{name}.npy").astype(np.float32)
        return kept

    def layer_done(self, report: LayerReport) -> None:
        """Records a finished layer; what came before it is not needed any more."""
        self.layers.append(report)
        self._record()
        for spent in self._place.path.glob(f"moments.{report.layer}.*"):
            spent.unlink()
        (self._place.path / f"hidden.{report.layer}").unlink(missing_ok=True)

    def states_kept(self, states: HiddenStates) -> None:
        """Notes the states that the next layer reads; the next :meth:`layer_done` records them."""
        if self._resumable and self._states_synced:
            states.sync()
        self._manifest.states = States(states.path.name, states.block_bytes, states.sums())

    def hidden(
        self, layers: int, shape: tuple[int, int, int], device: torch.device
    ) -> HiddenStates:
        """A place for the hidden states behind so many layers."""
        return HiddenStates(self._place.path / f"hidden.{layers}", shape, device, summed=True)

    def floats(
        self, layers: int, shape: tuple[int, int, int], device: torch.device
    ) -> HiddenStates:
        """A place for the float model's states behind so many layers."""
        return HiddenStates(self._place.path / f"float.{layers}", shape, device)

    def store_moments(self, layer: int, moments: Mapping[str, torch.Tensor]) -> None:
        """Keeps what was measured of a layer's gradients, by matrix, until the layer is done."""
        for name, tensor in moments.items():
            self._store(f"moments.{layer}.{name}.npy", tensor.cpu().numpy())

    def moments_stored(self) -> None:
        """Records that :meth:`store_moments` was called for every layer."""
        self._manifest.measured = True
        self._record()

    def moments(self, layer: int, name: str, device: torch.device) -> torch.Tensor:
        """What :meth:`store_moments` kept of a matrix."""
        return torch.from_numpy(self._load(f"moments.{layer}.{name}.npy")).to(device)

    @property
    def rounds(self) -> list[float]:
        """Held-out divergence after every round of learning; the first is before any."""
        return self._manifest.rounds

    @property
    def best_round(self) -> int:
        """The round of the lowest divergence, the first of equal ones; 0: before any."""
        return self.rounds.index(min(self.rounds))

    def store_learned(
        self, number: int, name: str, scales: Floats, offsets: npt.NDArray[np.float16]
    ) -> None:
        """Keeps a matrix as a round left it: scales [n, groups], offsets of its places [n, k]."""
        self._store(f"learned.{number}.{name}.scales.npy", scales)
        self._store(f"learned.{number}.{name}.offsets.npy", offsets)

    def learned(self, number: int, name: str) -> tuple[Floats, npt.NDArray[np.float16]]:
        """What :meth:`store_learned` kept."""
        scales, offsets = (
            self._load(f"learned.{number}.{name}.{part}.npy") for part in ("scales", "offsets")
        )
        return scales, offsets

    def round_done(self, divergence: float) -> None:
        """Records a round, the first time that of no learning; only the best and the last stay."""
        self.rounds.append(divergence)
        self._record()
        for path in self._place.path.glob("learned.*"):
            if not self._is_kept_round(path.name):
                path.unlink()

    def _is_kept_round(self, name: str) -> bool:
        return int(name.split(".")[1]) in (self.best_round, len(self.rounds) - 1)

    def vector(self, name: str) -> Floats:
        """What :meth:`store_vector` kept."""
        kept: Floats = self._load(f"{name}.npy")
        return kept

    def packed(self, name: str) -> Path:
        """The file of a packed matrix."""
        return self._place.path / f"{name}.packed"

    def inputs(self, stage: str, shape: tuple[int, int, int], device: torch.device) -> HiddenStates:
        """A place for what the matrices of a stage of the current layer read."""
        return HiddenStates(self._place.path / f"inputs.{stage}", shape, device)

    def write_model(
        self,
        metadata: Mapping[str, MetadataValue],
        tensors: Iterable[tuple[str, model_file.TensorSource]],
        check: Callable[[Path], None],
        numbers: Callable[[], dict[str, int]],
    ) -> None:
        """Writes the model file, still without its name; what it was made of is deleted.

        Args:
            metadata: What the file says of itself.
            tensors: Its tensors in file order.
            check: Called with the finished file; what it raises comes out, and the file is none.
            numbers: Gives, once the file is written, what a report needs besides.
        """
        path = self._place.path / _MODEL
        path.unlink(missing_ok=True)
        model_file.write_unnamed(path, metadata, tensors)
        check(path)
        self._manifest.numbers = numbers()
        self._manifest.model = Identity.of(path)
        self._written[_MODEL] = sum_of(path)
        self._record()
        scaled = [name for name in self._written if name.startswith("scaled.")]
        self._place.clear(MANIFEST_NAME, _MODEL, *scaled)

    @property
    def has_model(self) -> bool:
        """Whether the model file is whole, with its name or without."""
        return self._manifest.model is not None

    @property
    def has_output(self) -> bool:
        """Whether the model file has its name."""
        return self.has_model and self._manifest.model == Identity.of(self._output)

    @property
    def model(self) -> Path:
        """The whole model file, where it lies now."""
        return self._output if self.has_output else self._place.path / _MODEL

    @property
    def has_export(self) -> bool:
        """Whether the export has its name."""
        made = self._manifest.export
        return self._export is not None and made is not None and made == Identity.of(self._export)

    def export_made(self, identity: Identity) -> None:
        """Records an export that is about to get its name."""
        self._manifest.export = identity
        self._record()

    @property
    def numbers(self) -> dict[str, int]:
        """What :meth:`write_model` was told for the report."""
        return self._manifest.numbers

    def packed_sizes(self) -> dict[str, int]:
        """Bytes of the packed matrices by how their names begin; * stands for a layer's number."""
        return {
            prefix: sum(path.stat().st_size for path in self._place.path.glob(f"{prefix}*.packed"))
            for prefix in ("blk.", "token_embd", "output", "blk.*.expert.", "v.", "mm.")
        }

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, model_file.TensorSource]]:
        """Every tensor of the model file, for their names in file order."""
        for name in names:
            packed = self.packed(name)
            yield name, packed if packed.exists() else self.vector(name)

    def _worth_keeping(self) -> bool:
        return (self._resumable and (bool(self.layers) or self.measured)) or self.has_model

    def _taken_up(self) -> bool:
        """Takes up what is there, if it belongs to this conversion and is sound."""
        found = read_manifest(self._output)
        if found is None:
            self._events.message(
                "The manifest of an interrupted conversion is damaged: starting anew."
            )
            return False
        ours = self._manifest
        if found.key != ours.key or (ours.scaled and not found.scaled):
            self._events.message("An interrupted conversion was another one: starting anew.")
            return False
        if not self._resumable and found.model is None:
            return False
        self._manifest = found
        self._written = dict(found.files)
        damaged = self._damaged()
        if damaged is not None:
            self._events.message(
                f"{damaged} of an interrupted conversion is damaged: starting anew."
            )
            self._manifest, self._written = ours, {}
            return False
        return True

    def _damaged(self) -> str | None:
        """The first file that is not what the manifest says."""
        for name, expected in self._manifest.files.items():
            path = self._place.path / name
            if name == _MODEL:
                if self.has_output:
                    continue
                if self._manifest.model != Identity.of(path):
                    return name
            elif self.has_model and (self.has_export or not name.startswith("scaled.")):
                continue  # what was made of it is whole
            try:
                if sum_of(path) != expected:
                    return name
            except OSError:
                return name
        states = self._manifest.states
        if states is not None and not self.has_model and not are_sound(states, self._place.path):
            return states.name
        return None

    def _record(self) -> None:
        """Puts everything that is finished onto the medium, then says so."""
        done = len(self.layers)

        def finished(name: str) -> bool:
            kind, _, rest = name.partition(".")
            if kind == "moments":
                return self.measured and int(rest.partition(".")[0]) >= done
            if kind == "learned":
                return bool(self.rounds) and self._is_kept_round(name)
            if kind in ("blk", "scaled"):
                return int(rest.partition(".")[0]) < done
            return done > 0 or self.has_model

        self._manifest.files = {
            name: entry for name, entry in self._written.items() if finished(name)
        }
        if self._resumable:
            for name in sorted(self._unsynced & set(self._manifest.files)):
                self._unsynced.discard(name)
                with (self._place.path / name).open("rb+") as file:
                    sync(file)
            sync_directory(self._place.path)
        self._write_manifest()

    def _write_manifest(self) -> None:
        name = f"{MANIFEST_NAME}.writing"
        with self._place.new_file(name) as file:
            file.write(self._manifest.text())
            sync(file)
        (self._place.path / name).replace(self._place.path / MANIFEST_NAME)
        sync_directory(self._place.path)

    def _store(self, name: str, values: npt.NDArray[Any]) -> None:
        with self._new_file(name) as file:
            np.save(file, values)

    def _load(self, name: str) -> npt.NDArray[Any]:
        with opened(self._place.path / name) as file:
            values: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        return values

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[Summed]:
        """A file that counts as written at the end, and is synced before the manifest names it."""
        self._written.pop(name, None)
        with self._place.new_file(name) as file:
            summed = Summed(file)
            yield summed
        self._unsynced.add(name)
        self._written[name] = Sum(summed.size_bytes, summed.crc32)
