"""Options that the commands about boards share. Owns their names and help texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.errors import InvalidArgumentError
from awq_edge.quantities import parse_size

if TYPE_CHECKING:
    from awq_edge.device.bundle import ServicePlan

Target = Annotated[
    str,
    typer.Option("--target", "-t", help="The device: one of those 'awq-edge targets' lists."),
]
Pythons = Annotated[
    Optional[list[str]],
    typer.Option(
        "--python",
        help="Python version on the board, for example 3.11; repeatable; by default the target's.",
    ),
]
Wheel = Annotated[
    Optional[Path],
    typer.Option(
        "--wheel", metavar="WHEEL", help="One that 'awq-edge build' made; else it is built."
    ),
]
Service = Annotated[
    Optional[str],
    typer.Option(
        "--service",
        metavar="KIND",
        help="Also serve the model from the machine's start on, by systemd: user, or system, "
        "which needs sudo there.",
    ),
]
MemoryMax = Annotated[
    Optional[str],
    typer.Option(
        "--memory-max", metavar="SIZE", help="With --service: memory that it may take, as 2GB."
    ),
]


def service_plan(kind: Optional[str], memory_max: Optional[str]) -> "Optional[ServicePlan]":
    """The service that a command line asks for."""
    from awq_edge.device.bundle import ServicePlan

    if kind is None:
        if memory_max is not None:
            raise InvalidArgumentError("--memory-max limits the service: it needs --service.")
        return None
    return ServicePlan(kind, None if memory_max is None else parse_size(memory_max))
