"""A GGUF file, or all parts of a split one, as a checkpoint under Hugging Face's names.

Owns which files belong together, what kinds of GGUF files are no models, and where the tensor of a
converter's name lies. Refuses families (``gguf_families.py``) and to be precise where the source is
not: :attr:`GgufCheckpoint.caution` says what its rounding costs.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.checkpoints.checkpoint import Checkpoint
from awq_edge.checkpoints.gguf_entries import Entries
from awq_edge.checkpoints.gguf_families import GgufFamily, family_of, shared_config
from awq_edge.checkpoints.gguf_file import GgufFile, GgufTensor, read_gguf
from awq_edge.checkpoints.gguf_rope import rope_config
from awq_edge.checkpoints.gguf_tensors import (
    bits_per_weight,
    is_rounded,
    neighbours_apart,
    stored_tensor,
)
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.converters import Converter, find
from awq_edge.errors import CheckpointError, UnsupportedError

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_NUMBER = re.compile(r"\.\d+\.")
_EMBEDDING = "token_embd.weight"
# Angles that follow from the header, or that were read with it.
_WITHOUT_WEIGHTS = re.compile(r"(^rope_(freqs|factors_short|factors_long)|attn_rot_embd)\.weight$")

# Files of the same container that hold no model, by what they call their type.
_NO_MODELS = {
    "adapter": "an adapter (LoRA) without its base model; merge the two first, for example with "
    "llama-export-lora",
    "mmproj": "a vision projector, which belongs to a model but is none; give the model's own file",
    "imatrix": "an importance matrix, which llama.cpp rounds by; give a file of weights",
    "vocab": "a vocabulary without weights",
    "controlvector": "a control vector without its model",
}


class GgufCheckpoint(Checkpoint):
    """A checkpoint whose tensors come from GGUF files.

    Attributes:
        entries: What the first file says.
        caution: What the source's rounding costs, in one sentence; None if it is not rounded.
    """

    configured_by = "its header"

    def __init__(
        self,
        paths: list[Path],
        entries: Entries,
        config: dict[str, Any],
        tensors: dict[str, StoredTensor],
        caution: str | None,
    ) -> None:
        """Takes what :func:`open_gguf` found."""
        super().__init__(paths[0], config, tensors)
        self.entries = entries
        self.caution = caution
        self._paths = paths
        self._ours = {theirs: ours for ours, theirs in reversed(find(config).names.items())}

    @property
    def name(self) -> str:
        """What the model is called: the file's name, as that of a directory is its model's."""
        part = _PART.fullmatch(self.directory.name)
        return part["stem"] if part is not None else self.directory.stem

    def files(self) -> list[Path]:
        """Every file that is read."""
        return list(self._paths)

    def called(self, name: str) -> str:
        """The name in the file; a fused tensor is called by its first part."""
        stem, _, kind = name.rpartition(".")
        number = _NUMBER.search(stem)
        ours = self._ours.get(_NUMBER.sub(".N.", stem, count=1))
        if ours is None:
            return name
        return f"{ours.replace('.N.', number[0] if number else '.N.')}.{kind}"

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every part."""
        stats = [(path.name, path.stat()) for path in self._paths]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def open_gguf(path: Path) -> GgufCheckpoint:
    """Opens a model; reads no weights but tables of rotary factors.

    Args:
        path: The file, or any part of a split one.

    Raises:
        CheckpointError: A file is damaged, or a part is missing.
        UnsupportedError: It holds no model, or one of a family without a converter.
    """
    first = read_gguf(path)
    _refuse_no_model(first)
    files = _parts(first)
    entries = Entries(files[0].path, files[0].entries)
    family = family_of(entries)
    found: dict[str, GgufTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in found:
                raise CheckpointError(f"The parts of {path} hold the tensor {name} twice.")
            found[name] = tensor
    config = _config(entries, family, found)
    entries.refuse_unread()
    tensors = _Renamed(find(config), family, config).tensors(found)
    return GgufCheckpoint(
        [file.path for file in files], entries, config, tensors, _caution(path, found)
    )


def _refuse_no_model(file: GgufFile) -> None:
    kind, architecture = (
        value if isinstance(value, str) else None
        for value in (file.entries.get(f"general.{key}") for key in ("type", "architecture"))
    )
    if architecture == "clip":
        kind = "mmproj"
    if kind in _NO_MODELS:
        raise UnsupportedError(f"{file.path} holds {_NO_MODELS[kind]}.")
    if architecture == "awq-edge":
        raise UnsupportedError(
            f"{file.path} is a packed file already; run it as it is, or convert the checkpoint "
            "that it was made of."
        )


def _parts(opened: GgufFile) -> list[GgufFile]:
    """All files of a split model in order, whichever of them was given."""
    count = opened.entries.get("split.count", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        return [opened]
    named = _PART.fullmatch(opened.path.name)
    if named is None or int(named["count"]) != count:
        raise CheckpointError(
            f"{opened.path} is one of {count} parts; its name should end in "
            f"-00001-of-{count:05}.gguf, as llama.cpp names them."
        )
    files = []
    for number in range(1, count + 1):
        path = opened.path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        if not path.exists():
            raise CheckpointError(
                f"The part {path.name} is missing in {path.parent}; download it too."
            )
        file = opened if path == opened.path else read_gguf(path)
        if file.entries.get("split.no") != number - 1 or file.entries.get("split.count") != count:
            raise CheckpointError(f"{path} is another part than its name says; download it again.")
        files.append(file)
    return files


def _config(entries: Entries, family: GgufFamily, found: dict[str, GgufTensor]) -> dict[str, Any]:
    embedding = found.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{entries.path} has no tensor {_EMBEDDING}.")
    config = shared_config(entries, embedding.shape[0])

    def table(name: str) -> npt.NDArray[np.float64] | None:
        tensor = found.get(name)
        if tensor is None:
            return None
        values = stored_tensor(tensor).read(0, int(np.prod(tensor.shape))).double().numpy()
        if not np.isfinite(values).all() or bool((values <= 0).any()):
            raise CheckpointError(f"The rotary factors {name} of {tensor.path} are not positive.")
        return np.asarray(values)

    config.update(rope_config(entries, config["head_dim"], table))
    return {
        "model_type": family.model_type,
        **config,
        **family.further(entries, lambda name: name in found),
    }


class _Renamed:
    """Gives the tensors of a file the names by which a converter asks for them."""

    def __init__(self, converter: Converter, family: GgufFamily, config: dict[str, Any]) -> None:
        self.converter = converter
        self.family = family
        self.heads = {
            "attn_q": config["num_attention_heads"],
            "attn_k": config["num_key_value_heads"],
            "attn_v": config["num_key_value_heads"],
        }
        self.head_size = config["head_dim"]

    def tensors(self, found: dict[str, GgufTensor]) -> dict[str, StoredTensor]:
        """Records by Hugging Face's names.

        Raises:
            UnsupportedError: There is a tensor that no decoder of the family has. llama.cpp reads
                no such file either, and to leave it out would be another model.
        """
        named: dict[str, StoredTensor] = {}
        for name, tensor in found.items():
            stem, _, kind = name.rpartition(".")
            layer = _LAYER.fullmatch(stem)
            part = layer[2] if layer is not None else stem
            part = self.family.names.get(part, part)
            ours = f"blk.{layer[1]}." if layer is not None else ""
            for target, rows in self._targets(part, tensor, f"{ours}ffn_gate.weight" in found):
                addend = -self.family.norm_addend if target.endswith("norm") else 0.0
                if rows is None and self.family.neighbours and target in ("attn_q", "attn_k"):
                    rows = self._apart(target, tensor)
                theirs = self._theirs(f"{ours}{target}.{kind}", tensor, name)
                named[theirs] = stored_tensor(tensor, rows, addend)
        return named

    def _targets(
        self, part: str, tensor: GgufTensor, has_gate: bool
    ) -> list[tuple[str, npt.NDArray[np.int64] | None]]:
        """Which tensors of ours lie in one of the file, and in which of its rows; None: all."""
        names = self.converter.names
        if part == "attn_qkv":
            parts = [(name, heads * self.head_size) for name, heads in self.heads.items()]
        elif part == "ffn_up" and not has_gate and "blk.N.ffn_gate" in names:
            parts = [("ffn_gate", tensor.shape[0] // 2), ("ffn_up", tensor.shape[0] // 2)]
        else:
            return [(part, None)]
        if len({names.get(f"blk.N.{name}") for name, _ in parts}) == 1:
            return [(parts[0][0], None)]  # their checkpoints hold it fused, too
        targets: list[tuple[str, npt.NDArray[np.int64] | None]] = []
        first = 0
        for name, count in parts:
            targets.append((name, np.arange(first, min(first + count, tensor.shape[0]))))
            first += count
        return targets

    def _apart(self, target: str, tensor: GgufTensor) -> npt.NDArray[np.int64] | None:
        """None for a matrix that has not the rows it should have, which is refused by its shape."""
        heads = self.heads[target]
        if not tensor.shape or heads < 1 or tensor.shape[0] % (2 * heads):
            return None
        return neighbours_apart(tensor.shape[0], heads)

    def _theirs(self, ours: str, tensor: GgufTensor, stored: str) -> str:
        try:
            return str(self.converter.checkpoint_name(ours))
        except KeyError:
            if _WITHOUT_WEIGHTS.search(stored):
                return stored
        raise UnsupportedError(
            f"{tensor.path} holds the tensor {stored}, which is not supported in this family."
        )


def _caution(path: Path, found: dict[str, GgufTensor]) -> str | None:
    """What a rounded source costs."""
    rounded: Counter[str] = Counter()
    weights = size = 0
    for tensor in found.values():
        if is_rounded(tensor):
            count = int(np.prod(tensor.shape))
            rounded[tensor.type_name] += count
            weights += count
            size += round(count * bits_per_weight(tensor))
    if not weights:
        return None
    kinds = " and ".join(kind for kind, _ in rounded.most_common(2))
    return (
        f"{path.name} holds weights that are rounded already ({kinds}, {size / weights:.1f} bits "
        "each): what that cost stays in the result, so a file of F16, BF16 or Q8_0 gives a better "
        "one."
    )
