"""What extreme weights do to a conversion: found where it arises, and named with its layer.

Owns the sentences. Refuses to judge weights by their size: only what comes of them counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from awq_edge.errors import UnsupportedError


def check_finite(values: torch.Tensor, layer: int) -> torch.Tensor:
    """Gives what a layer adds to the residual stream, if it is finite.

    Raises:
        UnsupportedError: It is not.
    """
    if not bool(torch.isfinite(values).all()):
        raise UnsupportedError(
            f"Layer {layer} gives values that are not finite for the calibration text: its weights "
            "or norms are too large; the checkpoint is probably damaged."
        )
    return values


@contextlib.contextmanager
def solvable(what: str) -> Iterator[None]:
    """Words equations that have no solution in floats.

    Args:
        what: Whose they are, for example ``layer 3``.

    Raises:
        UnsupportedError: A factorisation inside failed.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not exported by name
        raise UnsupportedError(
            f"The inputs of {what} are too extreme for error compensation: weights or norms before "
            "it hold outliers; --method awq and rtn do without."
        ) from error
