"""Where the installed command begins: Ctrl-C before ``main`` can answer it.

Owns the time while modules load. Refuses everything else.
"""

from __future__ import annotations

import signal


def start() -> None:
    """Loads the command line and runs it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Nothing has been begun: ending at once, as other programs do, needs no sentence.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from awq_edge.cli.main import main

    signal.signal(signal.SIGINT, handler)
    main()
