"""Runs commands on a board through OpenSSH: the user's own program, configuration and keys.

Owns the connection, the limits of an answer in size and time, and the way from what ssh says to one
sentence. Refuses to know what is run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from awq_edge.device.answers import shown
from awq_edge.errors import BoardError, InvalidArgumentError, UnsupportedError

# What ssh itself exits with; anything else is the remote command's.
_SSH_FAILED = 255
# More than any board has to say; a stream without end must not fill this computer's memory.
_ANSWER_BYTES = 1 << 20
# For a question that needs no work there, on a slow board behind a slow line.
_ANSWER_SECONDS = 120.0
# A line of two kilobytes a second is slow; one that carries less than that is broken.
_SLOWEST_BYTES_PER_SECOND = 2000
# The longest that a whole deploy may hold a board.
_HOLD_SECONDS = 7 * 24 * 3600.0
# Closing a shared connection needs no word of the board.
_GOODBYE_SECONDS = 10.0
# The last words of a connection that a shared one still holds open.
_DRAIN_SECONDS = 2.0
# A socket's path may have 104 bytes on macOS, and ssh adds 17 while it makes it.
_SOCKET_FOLDER_BYTES = 80

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


# How ssh's own messages begin. Whatever else stands on standard error came from the board.
_SSH_WORDS = (
    "ssh: ",
    "ssh_",
    "kex_",
    "client_loop",
    "mux_client",
    "packet_write",
    "banner exchange",
    "Bad ",
    "command-line",
    "Connection ",
    "Disconnected ",
    "Load key",
    "no such identity",
    "Received disconnect",
    "Timeout, server",
    "Unable to negotiate",
    "unix_listener",
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
        if not host or host.startswith("-") or " " in host or not host.isprintable():
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
            # A long TMPDIR, such as macOS has, leaves no room for a socket's name.
            short = len(os.fsencode(tempfile.gettempdir())) < _SOCKET_FOLDER_BYTES
            folder = None if short else "/tmp"
            with contextlib.suppress(OSError):  # every command then has its own connection
                self._sockets = tempfile.mkdtemp(prefix="awq-edge-", dir=folder)
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
            with contextlib.suppress(OSError), _Conversation(command, _GOODBYE_SECONDS) as talk:
                talk.say([])
                talk.listen(None)
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def run(
        self,
        script: str,
        *arguments: str,
        text: str = "",
        seconds: float = _ANSWER_SECONDS,
        heard: Callable[[str], None] | None = None,
    ) -> Result:
        """Runs a shell script on the board and waits for it.

        Args:
            script: For the board's /bin/sh.
            *arguments: $1 and so on.
            text: Its standard input.
            seconds: How long it may take.
            heard: Called with each line of its standard output as it comes.

        Raises:
            BoardError: The board could not be reached, took too long, or said too much.
        """
        return self._exchange(script, arguments, [text.encode()], seconds, heard)

    def send(
        self,
        script: str,
        *arguments: str,
        parts: Iterable[bytes],
        size_bytes: int,
        seconds: float = _ANSWER_SECONDS,
    ) -> Result:
        """Runs a script with much standard input.

        Args:
            script: For the board's /bin/sh.
            *arguments: $1 and so on.
            parts: The input; the next one is asked for when one has been handed over.
            size_bytes: Of all parts.
            seconds: How long the script may work, on top of the time for the way.
        """
        seconds += size_bytes / _SLOWEST_BYTES_PER_SECOND
        return self._exchange(script, arguments, parts, seconds, None)

    @contextlib.contextmanager
    def hold(self, script: str, *arguments: str) -> Iterator[Result | None]:
        """Runs a script that says one line and then waits for the end of its input.

        Args:
            script: For the board's /bin/sh.
            *arguments: $1 and so on.

        Yields:
            None once it has said its line; what it did, if it ended without one.
        """
        with _Conversation(self._words(script, arguments), _HOLD_SECONDS) as talk:
            if talk.first_line() is not None:
                yield None
                return
        yield Result(talk.status, "", talk.errors.decode("utf-8", "replace"))

    def _exchange(
        self,
        script: str,
        arguments: Iterable[str],
        parts: Iterable[bytes],
        seconds: float,
        heard: Callable[[str], None] | None,
    ) -> Result:
        with _Conversation(self._words(script, arguments), seconds) as talk:
            talk.say(parts)
            talk.listen(heard)
        if talk.too_much:
            raise BoardError(
                f"{self.host} answered with more than a megabyte of text, which is no answer: "
                "does its shell print text at login?"
            )
        if talk.too_late:
            raise BoardError(
                f"{self.host} did not end its answer within {seconds / 60:.0f} minutes: look at "
                "what it does there, and run the same command again."
            )
        errors = talk.errors.decode("utf-8", "replace")
        if talk.status == _SSH_FAILED:
            raise BoardError(self._sentence(errors))
        return Result(talk.status, talk.output.decode("utf-8", "replace"), errors)

    def _words(self, script: str, arguments: Iterable[str]) -> list[str]:
        # The login shell may be any: it sees one word that it must not touch.
        remote = shlex.join(["sh", "-c", script, "sh", *arguments])
        return [*self._command, *self._options(), self.host, remote]

    def _options(self) -> list[str]:
        options = ["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        if self._sockets is not None:
            options += ["-o", "ControlMaster=auto", "-o", f"ControlPath={self._sockets}/s"]
            options += ["-o", "ControlPersist=60"]
        return options

    def _sentence(self, said: str) -> str:
        for mark, sentence in _FAILURES:
            if mark in said:
                return sentence.format(host=self.host)
        lines = [line.strip() for line in said.splitlines() if line.startswith(_SSH_WORDS)]
        why = f" ({shown(lines[-1]).rstrip('.')})" if lines else ""
        return f"The connection to {self.host} broke{why}: run the same command again."


class _Conversation:
    """One run of ssh: its input, and its output within limits. A context manager."""

    def __init__(self, command: list[str], seconds: float) -> None:
        """Starts it.

        Args:
            command: The program and its arguments.
            seconds: When it is ended, counted from now.
        """
        self.output = bytearray()
        self.errors = bytearray()
        self.status = 0
        self.too_much = False
        self.too_late = False
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._end = time.monotonic() + seconds
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._clock = threading.Timer(seconds, self._stop_late)
        self._clock.daemon = True
        self._clock.start()
        # A shared connection that stays behind may hold these open: they are not waited for.
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in (
                (self._process.stdout, self.output, True),
                (self._process.stderr, self.errors, False),
            )
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> _Conversation:
        """The running program."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it."""
        self._clock.cancel()
        if self._process.poll() is None:
            self._process.kill()
        self.status = self._process.wait()
        # What it has started itself, such as a proxy, must not go on writing.
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr)):
            if stream is not None and not reader.is_alive():
                stream.close()

    def say(self, parts: Iterable[bytes]) -> None:
        """Writes its standard input, and closes it."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # the exit status tells why
            for part in parts:
                stream.write(part)
                stream.flush()
        with contextlib.suppress(BrokenPipeError):
            stream.close()

    def listen(self, heard: Callable[[str], None] | None) -> None:
        """Waits for its end; hands on lines of its standard output as they come."""
        while self._process.poll() is None:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=0.05)
                if heard is not None:
                    heard(line)
        for reader in self._readers:
            reader.join(_DRAIN_SECONDS)
        while not self._lines.empty():
            line = self._lines.get()
            if heard is not None:
                heard(line)

    def first_line(self) -> str | None:
        """The first line of its standard output; None if it ended without one."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=0.05)
            if self._process.poll() is not None and not self._readers[0].is_alive():
                return None if self._lines.empty() else self._lines.get()

    def _read(self, stream: IO[bytes], kept: bytearray, in_lines: bool) -> None:
        begun = 0
        with contextlib.suppress(OSError, ValueError):
            while part := os.read(stream.fileno(), 1 << 16):
                if len(kept) + len(part) > _ANSWER_BYTES:
                    self.too_much = True
                    self._process.kill()
                    return
                kept += part
                while in_lines and (end := kept.find(b"\n", begun)) >= 0:
                    self._lines.put(bytes(kept[begun:end]).decode("utf-8", "replace"))
                    begun = end + 1

    def _stop_late(self) -> None:
        self.too_late = True
        self._process.kill()
