"""The work directory ``<output>.partial``: finished tensors, hidden states, a manifest.

Owns what an interrupted conversion leaves and how the next one takes it up. It outlives a
killed process, and Ctrl-C once a layer is finished; not an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_edge import model_file
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.conversion.report import Events, LayerReport
from awq_edge.errors import FileUnreadableError
from awq_edge.float_model import FloatModel
from awq_edge.quantize.scales import Choice


class WorkDirectory:
    """Finished tensors, hidden states and the manifest that says what they belong to."""

    def __init__(self, path: Path, key: str, events: Events) -> None:
        """A directory at ``path``, for the conversion that ``key`` stands for."""
        self._path = path
        self._key = key
        self._events = events
        self._output = path.with_name(path.name[: -len(".partial")])
        self.layers: list[LayerReport] = []
        self.measured = False  # whether the moments of every unfinished layer are there

    def __enter__(self) -> WorkDirectory:
        """Takes up what an interrupted conversion left, if it was the same conversion."""
        manifest = self._read_manifest()
        if manifest is not None and manifest.get("key") == self._key:
            self.layers = [_layer_report(entry) for entry in manifest["layers"]]
            self.measured = manifest.get("measured", False)
            if self._worth_keeping():
                self._events.message(
                    f"Resuming after layer {len(self.layers)} of an interrupted conversion."
                    if self.layers
                    else "Resuming at the first layer of an interrupted conversion."
                )
            return self
        if self._path.exists():
            if manifest is None and any(self._path.iterdir()):
                raise FileUnreadableError(
                    f"{self._path} is in the way and is not a work directory of awq-edge; "
                    "move it away or choose another output."
                )
            if manifest is not None:
                self._events.message("An interrupted conversion was another one: starting anew.")
            shutil.rmtree(self._path)
        try:
            self._path.mkdir()
            self._write_manifest()
        except OSError as error:
            raise model_file.write_error(self._output, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Keeps what is finished after Ctrl-C, clears all after an error; words a failed write."""
        if kind is None or (self._worth_keeping() and not issubclass(kind, Exception)):
            return
        self.finished()
        if isinstance(error, OSError):
            raise model_file.write_error(self._output, error) from error

    def _worth_keeping(self) -> bool:
        return bool(self.layers) or self.measured

    def finished(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self._path, ignore_errors=True)

    @contextlib.contextmanager
    def matrix_file(self, name: str) -> Iterator[Any]:
        """A file for the bytes of a packed matrix."""
        with (self._path / f"{name}.packed").open("wb") as file:
            yield file

    def store_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keeps a plain tensor."""
        np.save(self._path / f"{name}.npy", np.ascontiguousarray(values, dtype=np.float32))

    def layer_done(self, report: LayerReport) -> None:
        """Records a finished layer; what came before it is not needed any more."""
        self.layers.append(report)
        self._write_manifest()
        for spent in self._path.glob(f"moments.{report.layer}.*"):
            spent.unlink()
        (self._path / f"hidden.{report.layer}").unlink(missing_ok=True)

    def hidden(
        self, layers: int, shape: tuple[int, int, int], device: torch.device
    ) -> HiddenStates:
        """A place for the hidden states behind so many layers."""
        return HiddenStates(self._path / f"hidden.{layers}", shape, device)

    def floats(
        self, layers: int, shape: tuple[int, int, int], device: torch.device
    ) -> HiddenStates:
        """A place for the float model's states behind so many layers."""
        return HiddenStates(self._path / f"float.{layers}", shape, device)

    def store_moments(self, layer: int, moments: Mapping[str, torch.Tensor]) -> None:
        """Keeps what was measured of a layer's gradients, by matrix, until the layer is done."""
        for name, tensor in moments.items():
            np.save(self._path / f"moments.{layer}.{name}.npy", tensor.cpu().numpy())

    def moments_stored(self) -> None:
        """Records that :meth:`store_moments` was called for every layer."""
        self.measured = True
        self._write_manifest()

    def moments(self, layer: int, name: str, device: torch.device) -> torch.Tensor:
        """What :meth:`store_moments` kept of a matrix."""
        return torch.from_numpy(np.load(self._path / f"moments.{layer}.{name}.npy")).to(device)

    def inputs(self, stage: str, shape: tuple[int, int, int], device: torch.device) -> HiddenStates:
        """A place for what the matrices of a stage of the current layer read."""
        return HiddenStates(self._path / f"inputs.{stage}", shape, device)

    def tensors(self, source: FloatModel) -> Iterator[tuple[str, model_file.TensorSource]]:
        """Every tensor of the model file, in file order: as a token meets them."""
        names = [name for name in source.tensor_names() if not name.startswith("output")]
        names.insert(1, "rope.inverse_frequencies")
        names += [name for name in source.tensor_names() if name.startswith("output")]
        for name in names:
            packed = self._path / f"{name}.packed"
            yield name, packed if packed.exists() else np.load(self._path / f"{name}.npy")

    def packed_bytes(self, prefix: str) -> int:
        """Bytes of the packed matrices whose names begin so."""
        return sum(path.stat().st_size for path in self._path.glob(f"{prefix}*.packed"))

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self._path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) else None

    def _write_manifest(self) -> None:
        text = json.dumps(
            {
                "key": self._key,
                "measured": self.measured,
                "layers": [dataclasses.asdict(report) for report in self.layers],
            }
        )
        partial = self._path / "manifest.json.writing"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._path / "manifest.json")


def _layer_report(entry: dict[str, Any]) -> LayerReport:
    choices = {name: Choice(**choice) for name, choice in entry["choices"].items()}
    return LayerReport(entry["layer"], entry["error_rtn"], entry["error"], choices)
