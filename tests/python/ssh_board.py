"""A board for the tests of ``deploy``: a real OpenSSH server on the loopback, started by the test.

Its host key, the user's key, the configuration and the home folder are in the test's folder; the
system's own ssh files are neither read nor changed. Programs in ``stubs`` stand before the real
ones, so that the board can lie about itself.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


class SshBoard:
    """The server, and how a user reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.stubs = folder / "stubs"
        self.home.mkdir(parents=True)
        self.stubs.mkdir()
        for name in ("host", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        # Kept bound, beside which sshd may listen all the same: nobody else is given it.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.server: subprocess.Popen[bytes] | None = None
        self.trust()
        self.log_in_with("user")

    @property
    def ssh(self) -> str:
        """What ``--ssh`` takes."""
        return f"ssh -F {self.folder}/config"

    @property
    def prefix(self) -> Path:
        return self.home / ".local/share/awq-edge"

    def trust(self) -> None:
        """Makes the host key known."""
        key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def log_in_with(
        self, key: str, port: int | None = None, line: tuple[int, int] | None = None
    ) -> None:
        """Chooses the user's key, the server's port, and what lies between.

        Args:
            key: "user" or "stranger".
            port: Another one than the server's.
            line: Bytes per second, and after how many bytes to the board the line breaks.
        """
        proxy = ""
        if line is not None:
            program = Path(__file__).with_name("slow_line.py")
            proxy = f" ProxyCommand {sys.executable} {program} %h %p {line[0]} {line[1]}\n"
        (self.folder / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {port or self.port}\n"
            f" User {getpass.getuser()}\n IdentityFile {self.folder}/{key}\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {self.folder}/known\n GlobalKnownHostsFile /dev/null\n"
            " BatchMode yes\n IdentityAgent none\n"
            f"{proxy}"
        )

    def says(self, program: str, script: str) -> None:
        """Puts a program of the test's before the real one."""
        path = self.stubs / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def speaks(self, language: str) -> None:
        """The locale of the board; empty for its own."""
        words = f"LANG={language} LC_ALL={language} LANGUAGE={language}" if language else ""
        (self.folder / "locale").write_text(f"export {words}\n" if words else "")

    def start(self) -> None:
        server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if server is None:
            pytest.skip("sshd is not installed (Debian: openssh-server)")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where the server confines itself
        locale = f". {self.folder}/locale"
        (self.folder / "locale").write_text("")
        command = f"cd {self.home}; {locale}; HOME={self.home} PATH={self.stubs}:$PATH"
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nStrictModes no\n"
            "UsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nForceCommand {command} "
            'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        log = (self.folder / "log").open("wb")
        self.server = subprocess.Popen(
            [server, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log
        )
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self.server.poll() is not None:
                pytest.fail(f"sshd does not start: {(self.folder / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        pytest.fail("sshd does not answer")

    def break_connections(self) -> None:
        """Ends every session, as a lost network does; the server goes on listening."""
        assert self.server is not None
        for process in psutil.Process(self.server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()

    def clear(self) -> None:
        """An empty home and honest programs, once nobody writes there any more."""
        assert self.server is not None
        programs = psutil.Process(self.server.pid).children(recursive=True)
        self.break_connections()
        for program in psutil.wait_procs(programs, timeout=60)[1]:
            program.kill()
        for folder in (self.home, self.stubs):
            shutil.rmtree(folder)
            folder.mkdir()

    def stop(self) -> None:
        if self.server is not None:
            self.break_connections()
            self.server.terminate()
            self.server.wait()
        self._place.close()


@contextlib.contextmanager
def running_board(folder: Path) -> Iterator[SshBoard]:
    for tool in ("ssh", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: openssh-client)")
    board = SshBoard(folder)
    try:
        board.start()
        yield board
    finally:
        board.stop()
