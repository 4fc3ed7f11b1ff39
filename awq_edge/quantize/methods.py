"""The methods behind one interface: what each of them does to a layer at a width.

Owns the names that a user may give and what they stand for; ``auto`` stands for what measures best
(``benchmarks/quality.py``). Refuses to do any of it: ``awq_edge.conversion`` follows the plan.

AWQ before GPTQ must not lose to GPTQ alone. It does at 2 bits if the clipped weights become GPTQ's
target, for then the clipped part is never made up for: on novels-45m the divergence from the float
model is 0.096 nats, with GPTQ alone 0.094 and with the clip in the grid alone 0.078. So the target
is always the whole weight, and a clip narrows nothing but the grid. Scales found for rounding to
nearest do no harm (0.078 with them, 0.079 without).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from awq_edge.errors import InvalidArgumentError
from awq_edge.quantize.gptq import DAMPING

# Parts of a method that can be left out, to see what each is worth.
PARTS = (
    "scales",
    "clip",
    "joint",
    "asymmetry",
    "grid",
    "refinement",
    "propagation",
    "gradients",
    "duo",
    "values",
    "widths",
)

# Parts of the widest scale that are tried. Fewer levels gain from clipping more.
_SHARES = {
    8: (1.0,),
    6: (1.0, 0.95, 0.9),
    5: (1.0, 0.95, 0.9, 0.85, 0.8),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    3: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    2: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5),
}
# 5 and 6 bits: between their neighbours, not measured.
# Rounds of moving single codes and refitting scales after GPTQ.
_ROUNDS = {8: 0, 6: 1, 5: 1, 4: 1, 3: 2, 2: 3}
# Where scales beside a searched grid measured no worse than the grid alone. At 4 bits they lower
# novels-7m's divergence from 0.0290 to 0.0284 nats, and not novels-45m's (0.0026, four draws).
_SCALED = (4, 5, 6, 8)
# Of auto's Hessians. Calibrated on texts of eight kinds, SmolLM2's divergence on two texts that
# were not among them is 0.061 and 0.051 nats with 0.1, 0.059 and 0.048 with 0.3, 0.058 and 0.052
# with 1.
_AUTO_DAMPING = 0.3


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a method does to a layer at a width."""

    scales: str = "none"  # none; outputs: as AWQ searches them; pivots: for compensation
    clipped: bool = False  # the clip search of AWQ
    joint: bool = False  # scales compared with clipped weights
    apart: bool = False  # the lower and the upper limit chosen apart
    compensated: bool = False  # GPTQ
    shares: tuple[float, ...] = ()  # grids to choose from; none: the widest, or the clipped one
    rounds: int = 0
    propagated: bool = False  # targets that make up for what the layers before got wrong
    coupled: bool = False  # outputs make up for each other's errors
    duo: bool = False  # scales that weigh the weights' magnitudes too are tried beside plain ones
    values: bool = False  # values are scaled even where query heads share them
    widened: bool = False  # matrices that need it most get more bits than asked for


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method is, whatever the width."""

    name: str
    whole: Callable[[int], Plan]  # all that it does at a width, by its bits
    calibrated: bool = True
    mixes: bool = False  # can give every matrix a width of its own
    damping: float = DAMPING  # of Hessians

    def plan(self, bits: int, without: tuple[str, ...] = ()) -> Plan:
        """What it does at a width, some of its parts left out."""
        whole = self.whole(bits)
        return dataclasses.replace(
            whole,
            scales="none" if "scales" in without else whole.scales,
            clipped=whole.clipped and "clip" not in without,
            joint=whole.joint and not {"clip", "scales", "joint"} & set(without),
            apart=whole.apart and not {"clip", "asymmetry"} & set(without),
            shares=() if "grid" in without else whole.shares,
            rounds=0 if "refinement" in without else whole.rounds,
            propagated=whole.propagated and "propagation" not in without,
            coupled=whole.coupled and "gradients" not in without,
            duo=whole.duo and not {"scales", "duo"} & set(without),
            values=whole.values and not {"scales", "values"} & set(without),
            widened=whole.widened and "widths" not in without,
        )


_AWQ = Plan(scales="outputs", clipped=True, joint=True, apart=True, duo=True, values=True)


def _auto(bits: int) -> Plan:
    return Plan(
        scales="pivots" if bits in _SCALED else "none",
        compensated=True,
        shares=_SHARES[bits],
        rounds=_ROUNDS[bits],
        propagated=bits < 8,
        coupled=bits < 8,
        widened=bits < 8,
    )


def _awq_then_gptq(bits: int) -> Plan:
    return dataclasses.replace(_AWQ, joint=False, compensated=True, propagated=bits < 8)


METHODS = {
    method.name: method
    for method in (
        Method("auto", _auto, mixes=True, damping=_AUTO_DAMPING),
        Method("awq", lambda bits: _AWQ),
        Method("awq+gptq", _awq_then_gptq),
        Method("gptq", lambda bits: Plan(compensated=True), mixes=True),
        Method("rtn", lambda bits: Plan(), calibrated=False),
    )
}


def named(name: str) -> Method:
    """The method of a name.

    Raises:
        InvalidArgumentError: There is none.
    """
    if name not in METHODS:
        raise InvalidArgumentError(f"The method {name!r} is none of {', '.join(METHODS)}.")
    return METHODS[name]
