"""Hidden states of calibration blocks, read and written a batch of blocks at a time.

Owns where they are kept: a GPU has room for them, a CPU's memory holds one batch and a file the
rest. Refuses to know which layer they belong to: whoever names the file does.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class HiddenStates:
    """States [b, t, width], float32, without values until they are written."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        summed: bool = False,
    ) -> None:
        """Makes room.

        Args:
            path: The file; it may hold states already, and always does after :meth:`keep`. A link
                is not followed.
            shape: b blocks of t positions of some width.
            device: Where the states are computed with.
            summed: Whether :meth:`sums` will be asked for.
        """
        self.shape = shape
        self.device = device
        self.block_bytes = 4 * shape[1] * shape[2]
        self.path = path
        self._sums = [0] * shape[0] if summed else None
        self._file = os.fdopen(os.open(path, _FLAGS, 0o666), "r+b")
        self._memory = None if device.type == "cpu" else torch.empty(shape, device=device)

    def close(self) -> None:
        """Lets go of file and memory; the file stays."""
        self._file.close()
        self._memory = None

    def discard(self) -> None:
        """Lets go of file and memory, and of the states."""
        self.close()
        self.path.unlink(missing_ok=True)

    def read(self, blocks: slice) -> torch.Tensor:
        """A copy of some blocks, on the device: later writes do not change it."""
        return self._from_file(blocks) if self._memory is None else self._memory[blocks].clone()

    def write(self, blocks: slice, states: torch.Tensor) -> None:
        """Replaces some blocks."""
        if self._memory is None:
            self._to_file(blocks, states)
        else:
            self._memory[blocks] = states

    def keep(self) -> None:
        """Sees to it that the file holds the states, whatever becomes of this process."""
        if self._memory is not None:
            for block in range(self.shape[0]):
                self._to_file(slice(block, block + 1), self._memory[block : block + 1])
        self._file.flush()

    def sync(self) -> None:
        """Puts the file that :meth:`keep` filled onto the medium."""
        os.fsync(self._file.fileno())

    def sums(self) -> list[int]:
        """CRC-32 of every block as it lies in the file, computed when it was written."""
        assert self._sums is not None
        return list(self._sums)

    def take_up(self) -> None:
        """Begins with what the file holds."""
        if self._memory is not None:
            for block in range(self.shape[0]):
                self._memory[block : block + 1] = self._from_file(slice(block, block + 1))

    def _from_file(self, blocks: slice) -> torch.Tensor:
        states = torch.empty(blocks.stop - blocks.start, *self.shape[1:])
        self._file.seek(blocks.start * self.block_bytes)
        read = self._file.readinto(states.numpy().data)
        if read != states.nbytes:
            raise OSError(f"{self._file.name} is too short.")
        return states

    def _to_file(self, blocks: slice, states: torch.Tensor) -> None:
        values = states.cpu().contiguous().numpy()
        self._file.seek(blocks.start * self.block_bytes)
        self._file.write(values.data)
        if self._sums is not None:
            for number, block in enumerate(values, blocks.start):
                self._sums[number] = zlib.crc32(block.data)
