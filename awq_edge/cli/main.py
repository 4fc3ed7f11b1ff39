"""The command ``awq-edge``: registers the commands and hands errors to ``_errors``."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import sys
from typing import Annotated

import typer

from awq_edge import __version__
from awq_edge.cli import _errors, _streams
from awq_edge.cli._interrupt import interruptible
from awq_edge.cli.analyze import analyze
from awq_edge.cli.bench import bench
from awq_edge.cli.build import build
from awq_edge.cli.bundle import bundle
from awq_edge.cli.convert import convert
from awq_edge.cli.deploy import deploy
from awq_edge.cli.doctor import doctor
from awq_edge.cli.eval import app as eval_app
from awq_edge.cli.export import export
from awq_edge.cli.inspect import inspect
from awq_edge.cli.run import run
from awq_edge.cli.selftest import selftest
from awq_edge.cli.targets import targets

app = typer.Typer(
    name="awq-edge",
    help="AWQ-quantised language models: one file, one arithmetic, every device.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"awq-edge {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


app.command()(convert)
app.command()(inspect)
app.command()(run)
app.add_typer(eval_app, name="eval")
app.command()(bench)
app.command()(export)
app.command()(analyze)
app.command()(targets)
app.command()(build)
app.command()(bundle)
app.command()(deploy)
app.command()(doctor)
app.command()(selftest)


def main() -> None:
    """Runs the command line in ``sys.argv`` and exits with its status."""
    _streams.prepare()
    try:
        # Not standalone: typer would print usage errors and swallow Ctrl-C in its own way.
        with interruptible():
            status = app(prog_name="awq-edge", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        sys.exit(_errors.exit_status(error))
    if status == 130:  # newer typer turns Ctrl-C into this status
        _errors.stopped()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
