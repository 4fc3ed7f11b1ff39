"""Starting and stopping a server: sockets, signals, and the order in which things end.

Owns uvicorn. Refuses the command line: ``cli/serve.py`` has it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.errors import AwqEdgeError, FileUnreadableError, InvalidArgumentError
from awq_edge.serve.access import Access
from awq_edge.serve.service import Service
from awq_edge.text_files import read_whole

# Texts that are being written when the server is stopped get so long.
_STOP_SECONDS = 30
_MOST_CONNECTIONS = 512
_MOST_KEY_BYTES = 4096
_MOST_KEYS_BYTES = 1 << 20
_BACKLOG = 128


@dataclass(frozen=True)
class Place:
    """Where a server listens, and to whom.

    Attributes:
        host: Its address.
        port: 0 takes a free one.
        keys: One of them must come with each request; none: nobody is asked.
        hosts: Names besides those of the machine.
        origins: Web pages of others that may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: Sequence[bytes] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_keys(path: Path) -> list[bytes]:
    """The keys of a file, one in a line; empty lines and those that begin with # do not count.

    Raises:
        FileUnreadableError: It cannot be read.
        InvalidArgumentError: There is no key in it.
    """
    try:
        lines = read_whole(path, _MOST_KEYS_BYTES).splitlines()
    except OSError as error:
        raise FileUnreadableError(f"Cannot read the keys in {path}: {error.strerror}.") from error
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith(b"#")]
    if not keys:
        raise InvalidArgumentError(f"{path} holds no key: write one in a line.")
    if any(len(key) > _MOST_KEY_BYTES for key in keys):
        raise InvalidArgumentError(f"A line of {path} is too long for a key.")
    return keys


def serve(service: Service, place: Place, ready: Callable[[str], None]) -> None:
    """Serves until the process is told to stop.

    Args:
        service: What answers.
        place: Where.
        ready: Is told the address once requests are taken.

    Raises:
        AwqEdgeError: The address cannot be used.
    """
    import uvicorn

    from awq_edge.serve.app import application
    from awq_edge.serve.patient_protocol import PatientProtocol
    from awq_edge.serve.quiet_server import QuietServer

    bound = _bind(place)
    access = Access(
        application(service),
        keys=place.keys,
        hosts=(place.host, *place.hosts),
        origins=place.origins,
    )
    config = uvicorn.Config(
        access,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        proxy_headers=False,
    )
    # It tells on its own what we tell better.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        with _signals_end_quietly():
            ready(_url(bound))
            QuietServer(config).run(sockets=[bound])
    finally:
        bound.close()


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the server; uvicorn hands them on to these handlers afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def _bind(place: Place) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise InvalidArgumentError(
            f"--host {place.host!r} is no address of this machine."
        ) from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise AwqEdgeError(
            f"Cannot listen on {place.host} port {place.port}: {error.strerror}. Another program "
            "may use it; choose another with --port."
        ) from error
    bound.setblocking(False)
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
