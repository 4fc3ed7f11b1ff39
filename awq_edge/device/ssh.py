"""Runs commands on a board through OpenSSH: the user's own program, configuration and keys.

Owns the connection and the way from what ssh says to one sentence. Refuses to know what is run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from awq_edge.errors import BoardError, InvalidArgumentError, UnsupportedError

# What ssh itself exits with; anything else is the remote command's.
_SSH_FAILED = 255
_SEND_BYTES = 1 << 18

# What ssh prints, and the sentence it becomes. {host} is what the user typed.
_FAILURES = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The host key of {host} is not the one that is known for it: if the board was set up "
        "again, run ssh-keygen -R with its name, then ssh {host} once; otherwise do not connect.",
    ),
    (
        "Host key verification failed",
        "The host key of {host} is unknown: run ssh {host} once and confirm the key.",
    ),
    (
        "Permission denied",
        "{host} refused the login: check the user name and the key or password with ssh {host}.",
    ),
    (
        "Too many authentication failures",
        "{host} refused the login after too many keys: name the right one in ssh's configuration.",
    ),
    (
        "Could not resolve hostname",
        "There is no host of the name in {host}: check it for typing errors.",
    ),
    ("Connection refused", "{host} runs no ssh server on that port: enable ssh on the board."),
    ("timed out", "{host} does not answer: is the board on, and in this network?"),
    ("No route to host", "{host} cannot be reached: is the board on, and in this network?"),
    ("Network is unreachable", "{host} cannot be reached: is this computer in a network?"),
)


@dataclass(frozen=True)
class Result:
    """What a remote command did."""

    status: int
    output: str
    errors: str


class Remote:
    """A board. A context manager: one connection serves all commands inside it."""

    def __init__(self, host: str, command: str = "ssh") -> None:
        """Checks the arguments; connects at the first command.

        Args:
            host: What ssh takes: a name of its configuration, or user@host.
            command: The ssh program with options of the user's.
        """
        if not host or host.startswith("-") or any(letter.isspace() for letter in host):
            raise InvalidArgumentError(f"{host!r} is no host: write it as user@host.")
        self.host = host
        self._command = shlex.split(command, posix=os.name != "nt")
        if not self._command or shutil.which(self._command[0]) is None:
            raise UnsupportedError(
                f"The program {command.split()[0] if command.split() else 'ssh'} was not found: "
                "install the OpenSSH client."
            )
        self._sockets: str | None = None

    def __enter__(self) -> Remote:
        """The board itself."""
        if os.name != "nt":  # OpenSSH for Windows cannot share connections
            self._sockets = tempfile.mkdtemp(prefix="awq-edge-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connection."""
        if self._sockets is not None:
            command = [*self._command, *self._options(), "-O", "exit", self.host]
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(command, capture_output=True, timeout=10, check=False)
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def run(self, script: str, *arguments: str, text: str = "") -> Result:
        """Runs a shell script on the board and waits for it.

        Args:
            script: For the board's /bin/sh.
            *arguments: $1 and so on.
            text: Its standard input.

        Raises:
            BoardError: The board could not be reached.
        """
        with self._start(script, arguments) as (process, messages):
            output, _ = process.communicate(text.encode())
            return self._finish(process, output, messages)

    def send(
        self,
        script: str,
        *arguments: str,
        source: IO[bytes],
        progress: Callable[[int], None],
    ) -> Result:
        """Runs a script with the rest of a file as its standard input.

        Args:
            script: For the board's /bin/sh.
            *arguments: $1 and so on.
            source: Read from where it stands to its end.
            progress: Called with the bytes of each part that was handed over.
        """
        with self._start(script, arguments) as (process, messages):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the exit status tells why
                while part := source.read(_SEND_BYTES):
                    process.stdin.write(part)
                    progress(len(part))
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdin = None
            output, _ = process.communicate()
            return self._finish(process, output, messages)

    @contextlib.contextmanager
    def _start(
        self, script: str, arguments: Sequence[str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        # The login shell may be any: it sees one word that it must not touch.
        remote = shlex.join(["sh", "-c", script, "sh", *arguments])
        command = [*self._command, *self._options(), self.host, remote]
        # A file, not a pipe: a shared connection stays behind and would hold a pipe open.
        with tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages
            )
            try:
                yield process, messages
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _finish(
        self, process: subprocess.Popen[bytes], output: bytes, messages: IO[bytes]
    ) -> Result:
        messages.seek(0)
        said = messages.read().decode("utf-8", "replace")
        if process.returncode == _SSH_FAILED:
            raise BoardError(self._sentence(said))
        return Result(process.returncode, output.decode("utf-8", "replace"), said)

    def _options(self) -> list[str]:
        options = ["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        if self._sockets is not None:
            path = Path(self._sockets) / "%C"
            options += ["-o", "ControlMaster=auto", "-o", f"ControlPath={path}"]
            options += ["-o", "ControlPersist=60"]
        return options

    def _sentence(self, said: str) -> str:
        for mark, sentence in _FAILURES:
            if mark in said:
                return sentence.format(host=self.host)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        why = f" ({lines[-1].rstrip('.')})" if lines else ""
        return f"The connection to {self.host} broke{why}: run the same command again."
