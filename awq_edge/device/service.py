"""The service on a board: a systemd unit that serves the model from the machine's start on.

Owns the unit's text, where it goes, and the wait until it answers. The unit starts the launcher, so
it outlives releases; what a person wants to change about it stands in ``serve.conf`` below the
prefix and is kept. install.sh runs this source between those of ``release.py`` and
``installer.py``, with the board's own Python. Refuses to install anything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import time
from collections.abc import Callable

SERVICE_NAME = "awq-edge.service"
_CONFIGURATION = "serve.conf"
_SYSTEM_FOLDER = "/etc/systemd/system"
# A large model from a slow card.
_ANSWER_SECONDS = 120.0
_POLL_SECONDS = 1.0

_CONFIGURATION_TEXT = """\
# Options of 'awq-edge serve' for the service; 'awq-edge serve --help' tells all.
# By default only this machine reaches it. For a network, with a key of yours in a file:
#   AWQ_EDGE_SERVE=--host 0.0.0.0 --api-key-file /path/of/the/keys
# After a change: {restart}
AWQ_EDGE_SERVE=
"""

_UNIT = """\
# Written by install.sh, and again by the next installation; options go into {configuration}.
[Unit]
Description=awq-edge: {model}
After=network.target
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=exec
ExecStart={program} serve {path} $AWQ_EDGE_SERVE
EnvironmentFile=-{environment}
WorkingDirectory=/
Restart=on-failure
RestartSec=5
# Answers that are being written get half a minute.
TimeoutStopSec=45
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
{more}
[Install]
WantedBy={target}
"""

# These need a view of the file system of its own, which a user's units do not get everywhere. Not
# PrivateDevices: a Jetson's GPU is a device.
_OWN_VIEW = (
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
)


class ServiceFailure(Exception):
    """The service cannot be had; the text is the sentence."""


class Service:
    """The unit of one prefix."""

    def __init__(self, prefix: str, model: str, kind: str, memory_max: str) -> None:
        """Touches nothing.

        Args:
            prefix: Where awq-edge is installed.
            model: The model's file name.
            kind: "user" or "system".
            memory_max: Bytes that the service may take, in digits; "" does not limit it.
        """
        self.prefix = prefix
        self.model = model
        self.kind = kind
        self.memory_max = memory_max
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.home = os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
        self._systemctl = _systemctl(kind)

    def text(self, *, own_view: bool) -> str:
        """The unit.

        Args:
            own_view: Whether it may be given its own view of the file system.
        """
        more = []
        if self.kind == "system":
            more += [f"User={self.user}", "CapabilityBoundingSet=", "AmbientCapabilities="]
        if own_view:
            cache = f"{self.home}/.cache/awq-edge"
            more += [*_OWN_VIEW, f"ReadWritePaths={_quoted(cache)}"]
        if self.memory_max:
            more.append(f"MemoryMax={self.memory_max}")
        return _UNIT.format(
            configuration=f"{self.prefix}/{_CONFIGURATION}",
            model=self.model.replace("%", "%%"),
            program=_quoted(f"{self.prefix}/awq-edge"),
            path=_quoted(f"{self.prefix}/models/{self.model}"),
            # A path to its end of line: not quoted, and only the percent sign means something.
            environment=f"{self.prefix}/{_CONFIGURATION}".replace("%", "%%"),
            more="".join(f"{line}\n" for line in more),
            target="default.target" if self.kind == "user" else "multi-user.target",
        )

    def install(self, say: Callable[[str], None]) -> None:
        """Writes the unit, starts it, and waits until it answers.

        Args:
            say: Told what a person should know.

        Raises:
            ServiceFailure: systemd refuses it, or it does not answer.
        """
        marker = f"{self.prefix}/{SERVICE_NAME}"
        before = _read(marker)
        if before and _kind_of(before) != self.kind:
            _leave(_kind_of(before))
        place = self._place()
        there = _read(place)
        if there and f"ExecStart={_quoted(f'{self.prefix}/awq-edge')} serve " not in there:
            raise ServiceFailure(
                f"{place} is there already and is not the service of {self.prefix}: move it away."
            )
        # The unit's own view of the files needs the folder that it may write to.
        with contextlib.suppress(OSError):
            os.makedirs(f"{self.home}/.cache/awq-edge", mode=0o700, exist_ok=True)
        configuration = f"{self.prefix}/{_CONFIGURATION}"
        if not os.path.lexists(configuration):
            restart = " ".join([*self._systemctl, "restart", "awq-edge"])
            _write(configuration, _CONFIGURATION_TEXT.format(restart=restart))
        own_view = self.kind == "system" or _user_units_get_own_view()
        _write(marker, self.text(own_view=own_view))
        self._copy(marker, place)
        for words in (["daemon-reload"], ["enable", SERVICE_NAME], ["restart", SERVICE_NAME]):
            self._must(*words)
        if self.kind == "user" and not _lingers(self.user):
            say(
                "The service starts when you log in; for a start with the machine, run once: "
                f"sudo loginctl enable-linger {self.user}"
            )
        say(f"The service answers at {self._address()}")

    def _place(self) -> str:
        if self.kind == "system":
            return f"{_SYSTEM_FOLDER}/{SERVICE_NAME}"
        base = os.environ.get("XDG_CONFIG_HOME", "")
        if not base.startswith("/"):
            base = f"{self.home}/.config"
        return f"{base}/systemd/user/{SERVICE_NAME}"

    def _copy(self, source: str, place: str) -> None:
        if self.kind == "user":
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _write(place, _read(source))
            return
        command = [*_sudo(), "install", "-m", "644", source, place]
        status, said = _output(command)
        if status:
            raise ServiceFailure(f"{place} cannot be written{_because(said)}.")

    def _must(self, *words: str) -> None:
        status, said = _output([*self._systemctl, *words])
        if status:
            raise ServiceFailure(f"systemctl {words[0]} failed{_because(said)}.")

    def _address(self) -> str:
        """Where it answers, once it does."""
        log = "journalctl --user -u awq-edge" if self.kind == "user" else "journalctl -u awq-edge"
        end = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < end:
            _, state = _output([*self._systemctl, "is-active", SERVICE_NAME])
            if state.strip() == "failed":
                raise ServiceFailure(f"the service does not start: {log} tells why.")
            address = self._answering()
            if address:
                return address
            time.sleep(_POLL_SECONDS)
        raise ServiceFailure(f"the service runs and does not answer: {log} tells more.")

    def _answering(self) -> str:
        """The address of this model's server, as ``awq-edge ps`` knows it; "" if there is none."""
        status, said = _output([f"{self.prefix}/awq-edge", "ps", "--json"], errors=False)
        stem = self.model
        for ending in (".gguf", ".awq"):
            stem = stem[: -len(ending)] if stem.endswith(ending) else stem
        try:
            servers = json.loads(said)["servers"] if status == 0 else []
            for server in servers:
                if stem in server["models"] and server["health"].get("status"):
                    return str(server["address"])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return ""


def _systemctl(kind: str) -> list[str]:
    return ["systemctl", "--user"] if kind == "user" else [*_sudo(), "systemctl"]


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _kind_of(unit: str) -> str:
    return "user" if "WantedBy=default.target" in unit else "system"


def _leave(kind: str) -> None:
    """Ends a service of the other kind; if that fails, the new one tells that its port is taken."""
    _output([*_systemctl(kind), "disable", "--now", SERVICE_NAME])


def _lingers(user: str) -> bool:
    """Whether the user's services start with the machine, perhaps after asking for it."""
    _output(["loginctl", "enable-linger", user])
    status, said = _output(["loginctl", "show-user", "-p", "Linger", "--value", user])
    return status == 0 and said.strip() == "yes"


def _user_units_get_own_view() -> bool:
    options = [f"--property={line}" for line in _OWN_VIEW]
    command = ["systemd-run", "--user", "--quiet", "--wait", "--collect", *options, "true"]
    return _output(command)[0] == 0


def _quoted(text: str) -> str:
    """A word of a unit: nothing in it means anything to systemd."""
    for letter, spelt in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(letter, spelt)
    return f'"{text}"'


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as source:
            return source.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    """Replaces a file as a whole."""
    partial = f"{path}.{os.getpid()}"
    with open(partial, "x", encoding="utf-8", errors="surrogateescape") as sink:
        sink.write(text)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(partial, path)


def _output(command: list[str], *, errors: bool = True) -> tuple[int, str]:
    """A program's status and what it printed, with or without standard error."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            cwd="/",
            check=False,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _because(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f": {lines[-1].rstrip('.')}" if lines else ""
