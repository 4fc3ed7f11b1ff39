"""The command ``awq-edge``: registers the commands and hands errors to ``_errors``."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from awq_edge import __version__, unreadable_files
from awq_edge.cli import _errors, _streams
from awq_edge.cli._interrupt import interruptible

# In the order of the help. Each is a module here, loaded when it is asked for: together they take
# longer to load than a board takes to the first token.
_COMMANDS = (
    *("convert", "inspect", "run", "chat", "eval", "bench", "export", "analyze"),
    *("serve", "pull", "list", "ps", "rm"),
    *("targets", "build", "bundle", "deploy", "doctor", "selftest"),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"awq-edge {__version__}")
        raise typer.Exit


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


def application(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """The command line with the commands of these names."""
    made = typer.Typer(
        name="awq-edge",
        help="AWQ-quantised language models: one file, one arithmetic, every device.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback(invoke_without_command=True)(_root)
    for name in names:
        module = importlib.import_module(f"awq_edge.cli.{name}")
        if name == "eval":
            made.add_typer(module.app, name=name)
        else:
            made.command(name)(getattr(module, name))
    return made


def _asked(arguments: list[str]) -> tuple[str, ...]:
    """The commands that a command line can be about: its first word, or all of them."""
    first = arguments[0] if arguments else ""
    if first == "--version":
        return ()
    return (first,) if first in _COMMANDS else _COMMANDS


def app(arguments: Sequence[str], **settings: Any) -> Any:
    """Runs a command line within a program, and loads only the command that it is about.

    Args:
        arguments: Without the program's name.
        settings: Of typer: ``prog_name``, ``standalone_mode``.

    Returns:
        What typer gives: the exit status, or None.
    """
    return application(_asked(list(arguments)))(list(arguments), **settings)


def main() -> None:
    """Runs the command line in ``sys.argv`` and exits with its status."""
    _streams.prepare()
    unreadable_files.exit_on_unreadable_file("awq-edge")
    try:
        # Not standalone: typer would print usage errors and swallow Ctrl-C in its own way.
        with interruptible():
            status = app(sys.argv[1:], prog_name="awq-edge", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        sys.exit(_errors.exit_status(error))
    if status == 130:  # newer typer turns Ctrl-C into this status
        _errors.stopped()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
