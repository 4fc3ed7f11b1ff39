"""Writes one safetensors file a tensor at a time, for models that do not fit into memory.

Owns the bytes: the length of the header, the header in JSON, the tensors in its order. Refuses to
guess: every tensor must come with the type and the shape that were announced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InternalError

_TYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}

# Name, type ("I32" or "F16"), shape.
Announced = tuple[str, str, tuple[int, ...]]


def write_safetensors(
    path: Path, announced: Iterable[Announced], give: Callable[[str], npt.NDArray[Any]]
) -> None:
    """Writes a file.

    Args:
        path: The file; an older one is replaced.
        announced: Every tensor, in file order.
        give: Gives the values of a tensor when its turn comes.
    """
    tensors = list(announced)
    # transformers asks for this entry before it reads a file.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, kind, shape in tensors:
        end = offset + math.prod(shape) * _TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, kind, shape in tensors:
            values = give(name)
            if values.shape != shape or values.dtype != _TYPES[kind]:
                raise InternalError(
                    f"{name} is {values.dtype} {list(values.shape)}, announced was {kind} "
                    f"{list(shape)}."
                )
            file.write(np.ascontiguousarray(values).data)
