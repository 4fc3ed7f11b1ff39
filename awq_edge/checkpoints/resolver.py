"""Which files of a directory are the checkpoint, and every tensor in them.

Owns the order in which kinds of weights count, which is that of transformers, and the sentence for
a directory that holds none. What the files hold decides: an index says which shards there are, and
the shards say which tensors. Refuses to read weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from awq_edge.checkpoints import pickled_file, safetensors_file
from awq_edge.checkpoints.json_files import read_json, read_optional_json
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLED_FILE = "pytorch_model.bin"
_PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"

Tensors = dict[str, StoredTensor]

# In this order: a whole file counts before an index that may be left over beside it.
_PLACES: tuple[tuple[str, bool, Callable[[Path], Tensors]], ...] = (
    (SINGLE_FILE, False, safetensors_file.tensors_of),
    (INDEX_FILE, True, safetensors_file.tensors_of),
    (_PICKLED_FILE, False, pickled_file.tensors_of),
    (_PICKLED_INDEX_FILE, True, pickled_file.tensors_of),
)


def find_tensors(directory: Path) -> Tensors:
    """Every tensor of a checkpoint, by its name.

    Raises:
        CheckpointError: There are no weights, a shard is missing, or a file is damaged.
    """
    for name, is_index, tensors_of in _PLACES:
        path = directory / name
        if path.exists() or path.is_symlink():
            return _of_shards(path, tensors_of) if is_index else tensors_of(path)
    raise CheckpointError(foreign_weights(directory) or _no_weights(directory))


def _of_shards(index: Path, tensors_of: Callable[[Path], Tensors]) -> Tensors:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{index} has no table weight_map of names.")
    found: Tensors = {}
    for file in sorted(set(table.values())):
        if file in ("", ".", "..") or "\x00" in file or Path(file).name != file:
            raise CheckpointError(f"{index.name} names {file!r}, which is not a file beside it.")
        if not (index.parent / file).exists():
            raise CheckpointError(
                f"The shard {file} is missing in {index.parent}; download the checkpoint again."
            )
        found.update(tensors_of(index.parent / file))
    return found


def foreign_weights(directory: Path) -> str | None:
    """What to say of a directory whose weights are of a known kind that is not read."""
    adapter = _first(directory, "adapter_config.json", "adapter_model.*")
    if adapter is not None:
        base: Any = read_optional_json(directory / "adapter_config.json").get(
            "base_model_name_or_path"
        )
        whose = f" of {base}" if isinstance(base, str) and base.isprintable() and base else ""
        return (
            f"{directory} holds an adapter{whose} ({adapter}) without its base model; merge the "
            "two first (peft: merge_and_unload, then save_pretrained)."
        )
    original = _first(directory, "consolidated*.safetensors", "consolidated*.pth")
    if original is not None:
        return (
            f"{directory} holds {original}, weights under their maker's own names; use the "
            f"repository's {SINGLE_FILE} or {INDEX_FILE} with its config.json instead."
        )
    return None


def gguf_instead(directory: Path) -> str | None:
    """What to say of a directory that holds a GGUF file and no other weights."""
    file = _first(directory, "*.gguf")
    return None if file is None else f"{directory} holds {file}; give that file itself."


def _no_weights(directory: Path) -> str:
    shard = _first(directory, "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
    if shard is not None:
        index = INDEX_FILE if shard.endswith(".safetensors") else _PICKLED_INDEX_FILE
        return f"{directory} holds {shard} but no {index}; download that file too."
    file = gguf_instead(directory)
    if file is not None:
        return file
    other = _first(directory, "*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")
    beside = f"; {other} is no form of weights that is read" if other is not None else ""
    return (
        f"{directory} holds no {SINGLE_FILE}, {INDEX_FILE}, {_PICKLED_FILE} or "
        f"{_PICKLED_INDEX_FILE}{beside}."
    )


def _first(directory: Path, *patterns: str) -> str | None:
    """The first file, by name, that matches one of the patterns."""
    names = sorted(path.name for path in directory.iterdir())
    return next((n for n in names for p in patterns if Path(n).match(p)), None)
