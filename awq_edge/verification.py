"""The two checks of a model file that read all of it: its checksum and its scales.

Owns what ``awq-edge inspect --verify`` promises beyond the rules that every open enforces
(``native/format/FORMAT.md``, section 4). Refuses to repair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.errors import FileInvalidError

if TYPE_CHECKING:
    from awq_edge.model import Model


def verify(model: Model, progress: Callable[[int], None] | None = None) -> str:
    """Compares the checksum and looks for scales that are not finite.

    Args:
        model: An open model.
        progress: Called with the bytes of each tensor once it is checked.

    Returns:
        The SHA-256 of all tensors, 64 hexadecimal digits.

    Raises:
        FileInvalidError: The file is damaged; the text says where.
    """
    import numpy as np

    from awq_edge.layouts import HEADER_BYTES, Layout

    end = max((tensor.offset + tensor.bytes for tensor in model.tensors), default=0)
    if Path(model.path).stat().st_size < end:
        raise FileInvalidError(f"{model.path} was cut short since it was opened.")
    contents = np.memmap(model.path, np.uint8, mode="r")
    digest = hashlib.sha256()
    for tensor in sorted(model.tensors, key=lambda tensor: tensor.offset):
        part = contents[tensor.offset : tensor.offset + tensor.bytes]
        digest.update(part.data)
        if tensor.group_size:
            layout = Layout(tensor.rows, tensor.columns, tensor.bits, tensor.group_size)
            blocks = part[HEADER_BYTES:].reshape(layout.blocks, layout.block_bytes)
            scales = blocks[:, : layout.zero_points_offset].view(np.float16)
            bad = np.count_nonzero(~np.isfinite(scales))
            if bad:
                raise FileInvalidError(
                    f"{model.path}: {bad} scales of the tensor {tensor.name!r} are not finite."
                )
        if progress is not None:
            progress(tensor.bytes)
    found, expected = digest.hexdigest(), str(model.metadata.get("awq_edge.sha256", ""))
    if found != expected.lower():
        raise FileInvalidError(
            f"{model.path}: the SHA-256 of its tensors is {found}, and the file was written with "
            f"{expected}: its contents have changed since."
        )
    return found
