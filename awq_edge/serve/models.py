"""The models of a server: their names, which of them are loaded, and the memory that they may take.

Owns loading on demand and dropping what was not used for longest. Refuses sessions: the engine has
them. Its methods may wait, and are called on threads where that is allowed.
"""

from __future__ import annotations

import contextlib
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.errors import InvalidArgumentError
from awq_edge.model import Model
from awq_edge.quantities import size_text
from awq_edge.serve.engine import Engine
from awq_edge.serve.faults import RequestError
from awq_edge.serve.idle_watch import IdleWatch
from awq_edge.serve.texts import BusyError

_SUFFIXES = (".awq.gguf", ".gguf")
_RETRY_SECONDS = 10
# Before a model is looked at again that should go and cannot yet.
_AGAIN_SECONDS = 0.05
# Thirty years: no clock is set so far ahead.
_FOR_EVER_SECONDS = 1e9


@dataclass(eq=False)
class Served:
    """A file that can be asked.

    Attributes:
        name: What clients call it.
        path: Where it is.
        model: Open, or None until somebody asks.
        users: Requests that need it open.
        last_used: Of ``time.monotonic()``.
        created: The file's time, in seconds since 1970.
        size_bytes: Of the file.
        digest: Of its tensors, as the file says it.
        sees_pictures: Whether it has a vision part.
        pinned: Whether it stays open whatever happens.
        keep_seconds: How long it stays open unused; infinite for ever.
    """

    name: str
    path: Path
    created: int
    size_bytes: int
    digest: str
    sees_pictures: bool = False
    model: Model | None = None
    users: int = 0
    last_used: float = 0.0
    pinned: bool = False
    keep_seconds: float = math.inf

    @property
    def expires_in(self) -> float:
        """Seconds until it is dropped if nobody asks; infinite for never."""
        if self.pinned:
            return math.inf
        return self.last_used + self.keep_seconds - time.monotonic()

    @property
    def memory_bytes(self) -> int:
        """What it takes with one session, if it is open."""
        return self.model.memory().total_bytes if self.model is not None else 0


class Models:
    """Files by name."""

    def __init__(
        self,
        files: Sequence[Path],
        engine: Engine,
        open_model: Callable[[Path], Model],
        memory_bytes: int | None = None,
        *,
        keep_seconds: float = math.inf,
        pinned: Sequence[str] = (),
    ) -> None:
        """Checks that the files can be opened; the first one stays open.

        Args:
            files: Packed files.
            engine: Whose sessions a model must give back before it is closed.
            open_model: How a file is opened.
            memory_bytes: What the open ones may take together; None does not limit them.
            keep_seconds: How long one stays open that nobody asks; infinite for ever.
            pinned: Names of those that are opened now and stay open.

        Raises:
            AwqEdgeError: One cannot be opened, two have one name, or a pinned one is none of them.
        """
        self._engine = engine
        self._open = open_model
        self._budget = memory_bytes
        engine.may_grow = self.may_grow
        self._lock = threading.Lock()
        self._served: dict[str, Served] = {}
        for path in files:
            # Whether it can be opened at all is better known now than at the first request.
            model = open_model(path)
            found = path.stat()
            digest = str(model.metadata.get("awq_edge.sha256", ""))
            served = Served(
                _name(path), path, int(found.st_mtime), found.st_size, digest, model.sees_pictures
            )
            if served.name in self._served:
                model.close()
                raise InvalidArgumentError(
                    f"Two files are called {served.name}: {self._served[served.name].path} and "
                    f"{path}. Rename one."
                )
            self._served[served.name] = served
            served.pinned, served.keep_seconds = served.name in pinned, keep_seconds
            if len(self._served) == 1 or memory_bytes is None or served.pinned:
                served.model, served.last_used = model, time.monotonic()
            else:
                model.close()
        for name in pinned:
            if name not in self._served:
                raise InvalidArgumentError(
                    f"--pin {name}: it is none of {', '.join(self._served)}."
                )
        if memory_bytes is not None and self._taken() > memory_bytes and pinned:
            raise InvalidArgumentError(
                f"The pinned models need {size_text(self._taken())}, and this server gives its "
                f"models {size_text(memory_bytes)}: start it with more --memory or pin fewer."
            )
        self._watch = IdleWatch(self._drop_idle)

    @property
    def names(self) -> list[str]:
        """What clients may ask for."""
        return list(self._served)

    @property
    def all(self) -> list[Served]:
        """Every file."""
        return list(self._served.values())

    def find(self, name: str) -> Served:
        """The file that a name means.

        One model answers to every name, because most clients send one of their own; several do not.

        Raises:
            RequestError: There are several, and none is called so.
        """
        served = self._called(name)
        if served is not None:
            return served
        if len(self._served) == 1:
            return next(iter(self._served.values()))
        raise self._unknown(name)

    def require(self, name: str) -> None:
        """Refuses a name that is no model's own, also where one model answers to every name.

        Raises:
            RequestError: It is not.
        """
        if self._called(name) is None:
            raise self._unknown(
                name,
                " Its owner can fetch one with 'awq-edge pull' and name it to 'awq-edge serve'.",
            )

    def _called(self, name: str) -> Served | None:
        return self._served.get(name) or self._served.get(name.removesuffix(":latest"))

    def _unknown(self, name: str, more: str = "") -> RequestError:
        here = ", ".join(self._served)
        text = f"There is no model {name!r:.80} here, but {here}.{more}"
        return RequestError(text, param="model", status=404)

    def use(self, served: Served) -> Model:
        """The open model, loaded if need be; ``release`` ends this.

        Raises:
            BusyError: The memory is taken by models that are in use.
            AwqEdgeError: The file cannot be opened any more.
        """
        with self._lock:
            if served.model is None:
                model = self._open(served.path)
                try:
                    self._make_room(model)
                except BaseException:
                    model.close()
                    raise
                served.model = model
            served.users += 1
            served.last_used = time.monotonic()
            return served.model

    def release(self, served: Served) -> None:
        """A request does not need the model any more."""
        with self._lock:
            served.users -= 1
            served.last_used = time.monotonic()
        self._watch.look()

    def keep(self, served: Served, seconds: float) -> None:
        """Says how long a model stays open unused, from its last use on."""
        with self._lock:
            served.keep_seconds = seconds
        self._watch.look()

    @contextlib.contextmanager
    def used(self, served: Served) -> Iterator[Model]:
        """``use`` and ``release`` around a block."""
        model = self.use(served)
        try:
            yield model
        finally:
            self.release(served)

    def may_grow(self, size_bytes: int) -> bool:
        """Whether another session may take so much; called by the engine's thread."""
        return self._budget is None or self._taken() + size_bytes <= self._budget

    def close(self) -> None:
        """Closes everything."""
        self._watch.close()
        with self._lock:
            for served in self._served.values():
                if served.model is not None:
                    served.model.close()

    def _make_room(self, model: Model) -> None:
        if self._budget is None:
            return
        need = model.memory().total_bytes
        if need > self._budget:
            raise RequestError(
                f"The model needs {size_text(need)}, and this server gives its models "
                f"{size_text(self._budget)}: start it with more --memory or less --context.",
                status=503,
            )
        while need + self._taken() > self._budget:
            idle = [one for one in self._served.values() if not one.users and not one.pinned]
            idle.sort(key=lambda one: one.last_used)
            if not any(self._drop(one) for one in idle):
                raise BusyError(
                    "The memory is taken by models that are being used. Try again later.",
                    _RETRY_SECONDS,
                )

    def _drop(self, served: Served) -> bool:
        """Closes a model that nobody uses; False where it is closed, or the engine has texts."""
        if served.model is None or not self._engine.forget(served.model):
            return False
        served.model.close()
        served.model = None
        # A vocabulary takes tens of megabytes, and its tables refer to themselves.
        gc.collect()
        return True

    def _drop_idle(self) -> float | None:
        """Drops models whose time has come; the seconds until the next one's, None for never."""
        with self._lock:
            unused = [one for one in self._served.values() if one.model and not one.users]
            for one in unused:
                if one.expires_in <= 0:
                    self._drop(one)
            left = [max(one.expires_in, _AGAIN_SECONDS) for one in unused if one.model is not None]
        soonest = min(left, default=math.inf)
        return None if soonest > _FOR_EVER_SECONDS else soonest

    def _taken(self) -> int:
        """What the open ones have, each with one session at least."""
        total = 0
        for served in self._served.values():
            if served.model is not None:
                need = served.model.memory()
                first = need.cache_bytes + need.scratch_bytes
                total += need.weight_bytes + max(first, self._engine.session_bytes(served.model))
        return total


def _name(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name[: -len(suffix)]
    return path.name
