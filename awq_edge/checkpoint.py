"""Reads Hugging Face checkpoints: a local directory or a hub id, safetensors in one file or shards.

Owns finding the files, checking them and reading one tensor at a time; nothing else is ever in
memory. Refuses pickled weights, the meaning of quantised ones (``awq_edge.interchange`` knows it)
and names of tensors: ``awq_edge.converters`` knows those. Every refusal is one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from awq_edge.errors import CheckpointError, FileUnreadableError

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,  # integers: parts of quantised matrices
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")
# Copies of the same weights under other names, which some repositories hold too.
_HUB_UNNEEDED = ("consolidated*", "original/*", "*/*")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # from the file's beginning


class Checkpoint:
    """A checked directory of weights with its configuration."""

    def __init__(self, directory: Path, config: dict[str, Any], entries: dict[str, _Entry]) -> None:
        """Takes what :func:`open_checkpoint` found."""
        self.directory = directory
        self.config = config
        self._entries = entries

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of that name is there."""
        return name in self._entries

    def tensor(
        self, name: str, shape: tuple[int, ...], device: torch.device | None = None
    ) -> torch.Tensor:
        """Reads one tensor as float32, into the memory of a device or of the CPU.

        Raises:
            CheckpointError: It is missing, has another shape, or holds NaN or infinity.
        """
        entry = self._entry(name, shape)
        return self._read(name, entry, 0, math.prod(shape), device=device).reshape(shape)

    def row_blocks(
        self, name: str, shape: tuple[int, int], rows: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Reads a matrix [n, k] as float32 a block of rows at a time.

        Yields:
            The number of the block's first row, and the block [at most ``rows``, k].
        """
        entry = self._entry(name, shape)
        n, k = shape
        for first in range(0, n, rows):
            count = min(rows, n - first)
            yield first, self._read(name, entry, first * k, count * k).reshape(count, k)

    def stored(self, name: str) -> torch.Tensor:
        """Reads one tensor as it stands, integers too.

        Raises:
            CheckpointError: It is missing, or holds NaN or infinity.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"The checkpoint {self.directory} has no tensor {name}.")
        values = self._read(name, entry, 0, math.prod(entry.shape), as_stored=True)
        return values.reshape(entry.shape)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuses a tensor that is missing or has another shape; reads no weights."""
        self._entry(name, shape)

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file that matters: changes when the checkpoint does."""
        paths = {entry.path for entry in self._entries.values()}
        paths |= set(self.directory.glob("*.json")) | set(self.directory.glob("tokenizer.model"))
        stats = [(path.name, path.stat()) for path in sorted(paths)]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _entry(self, name: str, shape: tuple[int, ...]) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"The checkpoint {self.directory} has no tensor {name}.")
        if entry.shape != shape:
            raise CheckpointError(
                f"The tensor {name} in {entry.path} is {list(entry.shape)}, "
                f"but config.json asks for {list(shape)}."
            )
        if not entry.dtype.is_floating_point:
            raise CheckpointError(f"The tensor {name} in {entry.path} holds integers, not weights.")
        return entry

    def _read(
        self,
        name: str,
        entry: _Entry,
        first: int,
        count: int,
        *,
        as_stored: bool = False,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        values = torch.empty(count, dtype=entry.dtype)
        try:
            with entry.path.open("rb") as file:
                file.seek(entry.offset + first * entry.dtype.itemsize)
                read = file.readinto(values.view(torch.uint8).numpy().data)
        except OSError as error:
            raise FileUnreadableError(f"Cannot read {entry.path}: {error.strerror}.") from error
        if read != values.nbytes:
            raise CheckpointError(f"{entry.path} became shorter while it was read.")
        if device is not None:
            values = values.to(device)  # before it grows to float32
        if not as_stored:
            values = values.float()
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(
                f"The tensor {name} in {entry.path} holds NaN or infinite weights; "
                "download the checkpoint again or use another one."
            )
        return values


def open_checkpoint(model: str, *, quantised: bool = False) -> Checkpoint:
    """Finds and checks a checkpoint; reads no weights.

    Args:
        model: A directory, or a hub id such as ``HuggingFaceTB/SmolLM2-135M``.
        quantised: Whether its matrices may be quantised already.
    """
    directory = Path(model).expanduser()
    if not directory.exists():
        directory = _download(model)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is a file; give the directory that holds config.json and the weights."
        )
    config = read_json(directory / "config.json")
    settings = config.get("quantization_config")
    if settings and not quantised:
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else ""
        importable = method in ("awq", "compressed-tensors")
        raise CheckpointError(
            f"{directory} is already quantised ({method or 'unknown'}); convert the original float "
            f"checkpoint instead{', or import this one with --from-awq' if importable else ''}."
        )
    return Checkpoint(directory, config, _index(directory))


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of a checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no {path.name}.") from error
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:  # not JSON or not UTF-8
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return value


def _download(model: str) -> Path:
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise CheckpointError(
            f"There is no directory {model}, and it is not a hub id such as owner/name."
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=list(_HUB_FILES), ignore_patterns=list(_HUB_UNNEEDED)
            )
        )
    except Exception as error:  # the hub's client raises the errors of several HTTP libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"There is no directory {model}, and the hub did not give a model of that name "
            f"({reason.removeprefix('Got: ').rstrip('.')})."
        ) from error


def _index(directory: Path) -> dict[str, _Entry]:
    """Every tensor of the checkpoint."""
    if (directory / _INDEX_FILE).exists():
        index = read_json(directory / _INDEX_FILE).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise CheckpointError(f"{directory / _INDEX_FILE} has no table weight_map of names.")
        entries: dict[str, _Entry] = {}
        for file in sorted(set(index.values())):
            if Path(file).name != file:
                raise CheckpointError(
                    f"{_INDEX_FILE} names {file!r}, which is not a file beside it."
                )
            if not (directory / file).is_file():
                raise CheckpointError(
                    f"The shard {file} is missing in {directory}; download the checkpoint again."
                )
            entries.update(_header(directory / file))
        missing = sorted(set(index) - set(entries))
        if missing:
            raise CheckpointError(
                f"The shard {index[missing[0]]} in {directory} lacks the tensor {missing[0]} that "
                f"{_INDEX_FILE} promises."
            )
        return entries
    if (directory / _SINGLE_FILE).is_file():
        return _header(directory / _SINGLE_FILE)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(
            f"{directory} holds only pickled weights, which can run code when loaded; convert them "
            "to safetensors first (transformers: model.save_pretrained(..., safe_serialization))."
        )
    raise CheckpointError(f"{directory} holds no {_SINGLE_FILE} and no {_INDEX_FILE}.")


def _header(path: Path) -> dict[str, _Entry]:
    """The tensors of one safetensors file; checks that all of their bytes are there."""
    truncated = f"{path} is truncated; download it again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > size - 8:
                # A damaged length is as likely as a cut file when it is beyond every limit.
                damaged = size >= 8 and header_bytes > _MAX_HEADER_BYTES
                raise CheckpointError(
                    f"{path} is not a safetensors file." if damaged else truncated
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        header = json.loads(text)
        described = {name: entry for name, entry in header.items() if name != "__metadata__"}
        entries = {name: _parse(path, 8 + header_bytes, entry) for name, entry in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The header of {path} is not valid: {error}.") from error
    for name, entry in entries.items():
        if entry.offset + math.prod(entry.shape) * entry.dtype.itemsize > size:
            raise CheckpointError(f"{path} is truncated in the tensor {name}; download it again.")
    return entries


def _parse(path: Path, data_offset: int, entry: dict[str, Any]) -> _Entry:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"its type {entry['dtype']} is none of {', '.join(sorted(_DTYPES))}")
    begin, end = (int(offset) for offset in entry["data_offsets"])
    dtype, shape = _DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} cannot hold {entry['dtype']} {list(shape)}")
    return _Entry(path, dtype, shape, data_offset + begin)
