"""A checkpoint: its configuration, and its tensors one at a time as float32.

Owns opening a directory, a GGUF file or a hub id, and that a tensor which is asked for is there,
has its shape and holds numbers; nothing else is ever in memory. Of a model with more parts than a
decoder of text it is the decoder alone. Refuses the meaning of quantised ones
(``awq_edge.interchange`` knows it) and of names: ``awq_edge.converters`` knows those. Every refusal
is one sentence.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from awq_edge.checkpoints import hub
from awq_edge.checkpoints.folders import put_together
from awq_edge.checkpoints.gguf_file import is_gguf
from awq_edge.checkpoints.json_files import read_json
from awq_edge.checkpoints.resolver import find_tensors, foreign_weights, gguf_instead
from awq_edge.checkpoints.stored_tensor import StoredTensor, joined
from awq_edge.converters import text_part, vision_part
from awq_edge.errors import CheckpointError
from awq_edge.outputs.place import checkpoint_files

# A matrix that is quantised lies in parts of these names instead of "weight".
_QUANTISED_PARTS = ("qweight", "weight_packed", "B")

# One of them is in front of every name but the head's, in a checkpoint of the whole model; saved on
# its own, the decoder leaves it out.
_BASES = ("model.", "transformer.", "gpt_neox.")
# Of a tokenizer that comes from elsewhere: the second one names the token that ends an answer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Checkpoint:
    """A checked directory of weights with its configuration.

    Attributes:
        directory: Where it lies.
        beside: Where its tokenizer lies, and of a tower what says how pictures are prepared.
        config: Its config.json.
        configured_by: What says the shapes of its tensors.
        caution: What a user should know of its weights, in one sentence.
        extra_tokens: Special tokens that its family adds to any tokenizer; the first of them ends a
            text, before what the tokenizer's own files say.
        vision: The tower and the connector of a model that sees pictures, with the configuration of
            the whole; None: there are none.
    """

    configured_by = "config.json"
    caution: str | None = None
    extra_tokens: tuple[str, ...] = ()
    vision: Checkpoint | None = None

    def __init__(
        self, directory: Path, config: dict[str, Any], tensors: dict[str, StoredTensor]
    ) -> None:
        """Takes what :func:`open_checkpoint` found."""
        self.directory = directory
        self.beside = directory
        self.config = config
        self._tensors = tensors
        self._sorted = sorted(tensors)
        self._others: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """What the model is called."""
        return hub.model_name(self.directory)

    def files(self) -> list[Path]:
        """Every file that no output may replace."""
        return [file for place in self._places() for file in checkpoint_files(place)]

    def called(self, name: str) -> str:
        """What the files call a tensor that is asked for."""
        return name

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of that name is there, with or without the base prefix."""
        return self._found(name) is not None

    def tensor(
        self, name: str, shape: tuple[int, ...], device: torch.device | None = None
    ) -> torch.Tensor:
        """Reads one tensor as float32, into the memory of a device or of the CPU.

        Raises:
            CheckpointError: It is missing, has another shape, or holds NaN or infinity.
        """
        entry = self._weights(name, shape)
        return _floats(name, entry, 0, math.prod(shape), device).reshape(shape)

    def row_blocks(
        self, name: str, shape: tuple[int, int], rows: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Reads a matrix [n, k] as float32 a block of rows at a time.

        Yields:
            The number of the block's first row, and the block [at most ``rows``, k].
        """
        entry = self._weights(name, shape)
        n, k = shape
        for first in range(0, n, rows):
            count = min(rows, n - first)
            yield first, _floats(name, entry, first * k, count * k, None).reshape(count, k)

    def matrix_of_many(
        self,
        name: str,
        shape: tuple[int, int, int],
        number: int,
        rows: slice,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Reads rows of one of the matrices in a tensor [matrices, n, k] as float32, [rows, k].

        Raises:
            CheckpointError: As :meth:`tensor`.
        """
        entry = self._weights(name, shape)
        _, n, k = shape
        count = rows.stop - rows.start
        first = (number * n + rows.start) * k
        return _floats(name, entry, first, count * k, device).reshape(count, k)

    def stored(self, name: str) -> torch.Tensor:
        """Reads one tensor as it stands, integers too.

        Raises:
            CheckpointError: It is missing, or holds NaN or infinity.
        """
        entry = self._computable(name)
        values = entry.read(0, math.prod(entry.shape))
        _refuse_non_finite(name, entry, values)
        return values.reshape(entry.shape)

    def parts(self, base: str) -> list[str]:
        """What follows in the names of all tensors that begin with ``base.``, in order."""
        bases = [name for name in (base, _without_base(base)) if name is not None]
        found = []
        for prefix in (f"{b}." for b in bases):
            at = bisect.bisect_left(self._sorted, prefix)
            while at < len(self._sorted) and self._sorted[at].startswith(prefix):
                found.append(self._sorted[at][len(prefix) :])
                at += 1
        return found

    def names(self) -> list[str]:
        """The names of all tensors, in order, as the files have them."""
        return list(self._sorted)

    def ending(self, suffix: str) -> list[str]:
        """The names of all tensors that end so, in order, as the files have them."""
        return [name for name in self._sorted if name.endswith(suffix)]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuses a tensor that is missing or has another shape; reads no weights."""
        self._weights(name, shape)

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file that matters: changes when the checkpoint does."""
        paths = {entry.path for entry in self._tensors.values()}
        for pattern in ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja"):
            for place in self._places():
                paths |= set(place.glob(pattern))
        stats = [(path.name, path.stat()) for path in sorted(paths) if path.exists()]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _places(self) -> list[Path]:
        """Every directory that files of it lie in."""
        folders = text_part.FOLDERS.get(str((self.vision or self).config.get("model_type")), {})
        return [self.directory, *(self.directory / folder for folder in folders)]

    def also_called(self, others: Mapping[str, str]) -> None:
        """Parts of names by what may stand in their place; a tensor of the first name counts."""
        self._others = others

    def _found(self, name: str) -> StoredTensor | None:
        spelt = [name, *(name.replace(k, o) for k, o in self._others.items() if k in name)]
        for one in (spelling for full in spelt for spelling in (full, _without_base(full))):
            if one is not None and one in self._tensors:
                return self._tensors[one]
        return None

    def _computable(self, name: str) -> StoredTensor:
        entry = self._found(name)
        if entry is None:
            stem = name.rpartition(".")[0]
            for part in _QUANTISED_PARTS:
                if self._found(f"{stem}.{part}") is not None:
                    raise CheckpointError(
                        f"{self.directory} holds {stem} quantised already ({stem}.{part}), which "
                        "its config.json does not tell; use the original float checkpoint."
                    )
            raise CheckpointError(
                f"The checkpoint {self.directory} has no tensor {self.called(name)}."
            )
        if entry.dtype is None:
            raise CheckpointError(
                f"The tensor {name} in {entry.path} has the type {entry.type_name}; weights of 16, "
                "32 and 64-bit floats are read."
            )
        return entry

    def _weights(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self._computable(name)
        if entry.shape != shape:
            raise CheckpointError(
                f"The tensor {self.called(name)} in {entry.path} is {list(entry.shape)}, "
                f"but {self.configured_by} asks for {list(shape)}."
            )
        if entry.dtype is not None and not entry.dtype.is_floating_point:
            raise CheckpointError(f"The tensor {name} in {entry.path} holds integers, not weights.")
        return entry


def _without_base(name: str) -> str | None:
    """A name as the decoder alone has it; None if it has no such prefix."""
    return next((name[len(base) :] for base in _BASES if name.startswith(base)), None)


def open_checkpoint(model: str, *, quantised: bool = False) -> Checkpoint:
    """Finds and checks a checkpoint; reads no weights.

    Args:
        model: A directory, a GGUF file, or a hub id such as ``HuggingFaceTB/SmolLM2-135M``.
        quantised: Whether its matrices may be quantised already.
    """
    if not model or "\x00" in model:
        raise CheckpointError(f"{model!r} names no directory and no model of the hub.")
    from awq_edge.checkpoints import flamingo_directory as flamingo  # it makes a Checkpoint

    directory = Path(model).expanduser()
    from_hub = not directory.exists()
    if from_hub:
        flamingo.refuse_release_alone(model)
        directory = hub.download(model)
    if not directory.is_dir():
        if directory.suffix == ".gguf" or is_gguf(directory):
            return _open_gguf(directory, quantised)
        raise CheckpointError(
            f"{directory} is a file; give the directory that holds config.json and the weights."
        )
    config_path = directory / "config.json"
    if flamingo.is_flamingo(directory):
        return flamingo.open_flamingo_directory(directory)
    if not config_path.exists():
        # What lies there instead may say more than the name of the file that does not.
        raise CheckpointError(
            foreign_weights(directory)
            or gguf_instead(directory)
            or f"{directory} holds no config.json."
        )
    config = text_part.with_type(read_json(config_path))
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings and not quantised:
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else ""
        importable = method in ("awq", "compressed-tensors")
        raise CheckpointError(
            f"{directory} is already quantised ({method or 'unknown'}); convert the original float "
            f"checkpoint instead{', or import this one with --from-awq' if importable else ''}."
        )
    folders = text_part.FOLDERS.get(str(config.get("model_type")))
    if folders is None:
        tensors = find_tensors(directory)
    else:
        config, tensors = put_together(directory, config, folders)
    if not text_part.is_wrapper(config):
        return Checkpoint(directory, config, tensors)
    found = _part(tensors, text_part.text_tensor)
    for name, more in text_part.MORE_ROWS.items():
        if more in found and name in found:
            found[name] = _with_more_rows(found[name], found.pop(more))
    text = Checkpoint(directory, text_part.text_config(config), found)
    text.vision = Checkpoint(directory, config, _part(tensors, vision_part.vision_tensor))
    if folders is not None:
        text.beside, text.vision.beside = (directory / folder for folder in list(folders)[:2])
    missing = [name for name in _TOKENIZER_FILES if not (directory / name).exists()]
    tokenizer = text_part.tokenizer_elsewhere(config) if missing else None
    if tokenizer is not None:
        if not from_hub:
            raise CheckpointError(
                f"{directory} holds no {missing[0]}: this model reads with the tokenizer of "
                f"{tokenizer}; put tokenizer.json and tokenizer_config.json of that model there."
            )
        text.beside = hub.download_tokenizer(tokenizer)
    return text


def _part(
    tensors: dict[str, StoredTensor], inner_name: Callable[[str], str | None]
) -> dict[str, StoredTensor]:
    """Those tensors that a part of a model calls something, by what it calls them."""
    named = ((inner_name(name), tensor) for name, tensor in tensors.items())
    return {inner: tensor for inner, tensor in named if inner is not None}


def _with_more_rows(first: StoredTensor, second: StoredTensor) -> StoredTensor:
    if len(first.shape) != 2 or first.shape[1:] != second.shape[1:]:
        raise CheckpointError(
            f"{first.path} holds rows of two widths in one table, {list(first.shape)} and "
            f"{list(second.shape)}: it is damaged."
        )
    return joined(first, second)


def _open_gguf(path: Path, quantised: bool) -> Checkpoint:
    from awq_edge.checkpoints.gguf_checkpoint import open_gguf

    if quantised:
        raise CheckpointError(
            f"{path} is a GGUF file, whose integers cannot be taken over; convert it without "
            "--from-awq."
        )
    return open_gguf(path)


def _floats(
    name: str, entry: StoredTensor, first: int, count: int, device: torch.device | None
) -> torch.Tensor:
    values = entry.read(first, count)
    if device is not None:
        values = values.to(device)  # before it grows to float32
    whole = values.float()
    if entry.dtype == torch.float64 and not bool(torch.isfinite(whole).all()):
        _refuse_non_finite(name, entry, values)
        raise CheckpointError(
            f"The tensor {name} in {entry.path} holds weights beyond the range of float32."
        )
    _refuse_non_finite(name, entry, whole)
    return whole


def _refuse_non_finite(name: str, entry: StoredTensor, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            f"The tensor {name} in {entry.path} holds NaN or infinite weights; "
            "download the checkpoint again or use another one."
        )
