"""Reads pickled weights (pytorch_model*.bin): tensors alone, mapped, one at a time.

Owns that nothing in such a file runs: the only way in is ``torch.load`` with its restricted
unpickler, which knows tensors and plain containers and refuses every other name. The file is
mapped, so a tensor's bytes are read when it is. Nothing else in this package unpickles anything.
"""

from __future__ import annotations

import functools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from awq_edge.checkpoints.files import open_regular, refuse_pointer
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.unreadable_files import before_mapping

# Before it, the restricted unpickler could be tricked into running code (CVE-2025-32434).
_SAFE_SINCE = (2, 6)


def tensors_of(path: Path, table: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor of a file, by its name; what is no tensor is left out.

    Args:
        path: The file.
        table: Where it is a training's: the name of the table that holds the weights.

    Raises:
        CheckpointError: It is no such file, or holds something that the restricted unpickler
            refuses.
        UnsupportedError: This PyTorch cannot read it safely.
    """
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE_SINCE:
        raise UnsupportedError(
            f"{path} holds pickled weights, and PyTorch {torch.__version__} may run code while it "
            f"reads such a file; install PyTorch {'.'.join(map(str, _SAFE_SINCE))} or newer."
        )
    _check_container(path)
    before_mapping()
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of torch, pickle and zip, whatever the file makes them raise
        raise CheckpointError(f"{path} cannot be read as weights: {_reason(error)}.") from error
    if isinstance(loaded, dict) and isinstance(loaded.get(table), dict):
        loaded = loaded[table]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds no table of tensors by their names.")
    found = {
        name: _stored(path, value)
        for name, value in loaded.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not found:
        raise CheckpointError(f"{path} holds no tensors by their names.")
    return found


def _check_container(path: Path) -> None:
    with open_regular(path) as file:
        beginning = file.read(64)
        refuse_pointer(path, beginning)
        if zipfile.is_zipfile(file):
            return
    if beginning.startswith(b"PK"):
        raise CheckpointError(f"{path} is truncated; download it again.")
    if beginning.startswith(b"\x80"):  # a pickle without a container
        raise CheckpointError(
            f"{path} is in the form that PyTorch wrote before release 1.6, which cannot be read "
            "one tensor at a time; write it anew once: torch.save(torch.load(FILE, "
            "weights_only=True), FILE)."
        )
    raise CheckpointError(f"{path} is not a file of PyTorch weights.")


def _stored(path: Path, tensor: torch.Tensor) -> StoredTensor:
    tensor = tensor.detach()
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    readable = plain and tensor.device.type == "cpu" and not tensor.dtype.is_complex
    name = str(tensor.dtype).removeprefix("torch.") if plain else str(tensor.layout)
    dtype = tensor.dtype if readable and _is_computed_with(tensor.dtype) else None
    read = functools.partial(_read, path, tensor)
    return StoredTensor(path, name, dtype, tuple(tensor.shape), read)


def _is_computed_with(dtype: torch.dtype) -> bool:
    return dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )


def _read(path: Path, tensor: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """A copy of some elements, whole rows of a matrix where its rows do not follow each other."""
    try:
        if not tensor.is_contiguous() and tensor.dim() == 2 and count:
            columns = tensor.shape[1]
            return tensor[first // columns : (first + count) // columns].flatten().clone()
        return tensor.reshape(-1)[first : first + count].clone()
    except RuntimeError as error:  # its storage is smaller than the shape promises
        raise CheckpointError(f"{path} cannot be read as weights: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """What of a long explanation says why."""
    text = str(error)
    refused = re.search(r"Unsupported (?:global|class|operand|operator)[^\n.]*(?:\.\w+)*", text)
    if refused is not None:
        name = re.sub(r"\s+was not.*", "", refused.group(0))
        return f"the restricted unpickler, which knows tensors alone, refuses it ({name})"
    first: Any = text.strip().split("\n")[0] or type(error).__name__
    return str(first)[:200].rstrip(".: ")
