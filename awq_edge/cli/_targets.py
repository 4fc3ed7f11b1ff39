"""Options that the commands about boards share. Owns their names and help texts only."""

from pathlib import Path
from typing import Annotated, Optional

import typer

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
