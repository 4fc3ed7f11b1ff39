"""The methods behind one interface: what each of them does to a layer at a width.

Owns the names that a user may give and what they stand for; ``auto`` stands for what measures best
(``benchmarks/quality.py``). Refuses to do any of it: ``awq_edge.conversion`` follows the plan.
"""

from __future__ import annotations

import dataclasses

from awq_edge.errors import InvalidArgumentError

METHODS = ("auto", "awq", "awq+gptq", "gptq", "rtn")
# Those that can give every matrix a width of its own.
MIXING = ("auto", "gptq")
# Parts of a method that can be left out, to see what each is worth.
PARTS = ("scales", "clip", "grid", "refinement")

# Parts of the widest scale that are tried. Fewer levels gain from clipping more.
_SHARES = {
    8: (1.0,),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    3: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    2: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5),
}
# Rounds of moving single codes and refitting scales after GPTQ.
_ROUNDS = {8: 0, 4: 1, 3: 2, 2: 3}
# Where scales beside a searched grid measured better than the grid alone.
_SCALED = (4, 8)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to a layer."""

    calibrated: bool = True
    scales: str = "none"  # none; outputs: as AWQ searches them; pivots: for compensation
    clipped: bool = False  # the clip search of AWQ
    compensated: bool = False  # GPTQ
    shares: tuple[float, ...] = ()  # grids to choose from; none: the widest, or the clipped one
    rounds: int = 0


def plan(method: str, bits: int, without: tuple[str, ...] = ()) -> Plan:
    """What a method means at a width, some of its parts left out."""
    whole = _plan(method, bits)
    return dataclasses.replace(
        whole,
        scales="none" if "scales" in without else whole.scales,
        clipped=whole.clipped and "clip" not in without,
        shares=() if "grid" in without else whole.shares,
        rounds=0 if "refinement" in without else whole.rounds,
    )


def _plan(method: str, bits: int) -> Plan:
    if method == "rtn":
        return Plan(calibrated=False)
    if method == "awq":
        return Plan(scales="outputs", clipped=True)
    if method == "gptq":
        return Plan(compensated=True)
    if method == "awq+gptq":
        return Plan(scales="outputs", clipped=True, compensated=True)
    if method == "auto":
        return Plan(
            scales="pivots" if bits in _SCALED else "none",
            compensated=True,
            shares=_SHARES[bits],
            rounds=_ROUNDS[bits],
        )
    raise InvalidArgumentError(f"The method {method!r} is none of {', '.join(METHODS)}.")
