"""Where the installed command begins, and how it ends when Ctrl-C finds nothing to stop.

Owns the time before ``main`` can answer, while modules load, and after it has: ending at once, as
other programs do, needs no sentence then. Refuses everything else.
"""

from __future__ import annotations

import signal
import sys


def start() -> None:
    """Loads the command line and runs it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from awq_edge.cli import _streams

    _streams.prepare()  # before a module opens a file under the number of a closed stream
    if sys.argv[1:] == ["--version"]:
        # An installation and a service ask for nothing else: five times as quick without typer.
        _print_version()
        return
    from awq_edge.cli.main import main

    main()


def _print_version() -> None:
    from awq_edge import __version__

    try:
        print(f"awq-edge {__version__}", flush=True)
    except OSError as error:
        from awq_edge.cli import _errors

        sys.exit(_errors.exit_status(error))
