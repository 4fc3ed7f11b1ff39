"""``awq-edge serve``: packed models for clients of the interfaces that are known."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.cli._groups import Guessing, Running, Sampling, grouped
from awq_edge.cli._options import Context, Kv, Quiet, listed, model_path
from awq_edge.cli._output import Output
from awq_edge.cli._pictures import keep_pictures
from awq_edge.errors import FileUnreadableError, InvalidArgumentError
from awq_edge.quantities import parse_duration, parse_size

if TYPE_CHECKING:
    from awq_edge.model import Model
    from awq_edge.serve.stored_contexts import StoredContexts


@grouped
def serve(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            parser=model_path,
            help="Files that 'awq-edge convert' wrote, or names that 'awq-edge list' tells.",
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8080,
    api_key_file: Annotated[
        Optional[Path],
        typer.Option(
            "--api-key-file", metavar="FILE", help="Ask for a key: one of the lines of this file."
        ),
    ] = None,
    cors_origins: Annotated[
        Optional[list[str]],
        typer.Option(
            "--cors-origins",
            metavar="ORIGINS",
            help="Web pages of others that may ask, as https://example.org,…; none by default.",
        ),
    ] = None,
    allowed_hosts: Annotated[
        Optional[list[str]],
        typer.Option(
            "--allowed-hosts",
            metavar="NAMES",
            help="Names of this server besides those of the machine, as a proxy calls it.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=128, help="Texts computed at a time.")
    ] = 8,
    queue: Annotated[
        int, typer.Option("--queue", min=0, max=100_000, help="Texts that may wait beside them.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, max=1e6, help="Seconds that a request may take.")
    ] = 600.0,
    memory: Annotated[
        Optional[str],
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="For all models together, as 2GB: they are loaded on demand and dropped again.",
        ),
    ] = None,
    cache_dir: Annotated[
        Optional[Path],
        typer.Option(
            "--cache-dir",
            metavar="DIR",
            help="Where contexts and encoded pictures are kept over restarts; by default in the "
            "user's cache.",
        ),
    ] = None,
    cache_size: Annotated[
        str,
        typer.Option(
            "--cache-size",
            metavar="SIZE",
            help="For all of them, a quarter of it for pictures; 0 keeps none.",
        ),
    ] = "1GB",
    *,
    keep_alive: Annotated[
        str,
        typer.Option(
            "--keep-alive",
            metavar="TIME",
            help="How long a model stays open that nobody asks, as 30m; -1 for ever.",
        ),
    ] = "-1",
    pin: Annotated[
        Optional[list[str]],
        typer.Option("--pin", metavar="NAMES", help="Models that stay open whatever happens."),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(
            "--pooling",
            metavar="mean|last",
            help="What an embedding is made of: all tokens of a text, or the last.",
        ),
    ] = "mean",
    sampling: Sampling,
    guessing: Guessing,
    running: Running,
    context: Context = None,
    kv: Kv = "fp16",
    quiet: Quiet = False,
) -> None:
    """Answer clients of OpenAI's, Anthropic's and Ollama's interfaces with packed models."""
    from awq_edge.embedding import check_pooling
    from awq_edge.running_servers import announced
    from awq_edge.serve.engine import Engine
    from awq_edge.serve.models import Models
    from awq_edge.serve.service import Limits, Service
    from awq_edge.serve.start import Place, read_keys
    from awq_edge.serve.start import serve as serve_until_stopped

    output = Output(quiet=quiet)
    check_pooling(pooling)
    logging.basicConfig(
        stream=sys.stderr, format="%(levelname)s %(message)s", level=logging.WARNING
    )
    place = Place(
        host=host,
        port=port,
        keys=() if api_key_file is None else read_keys(api_key_file),
        hosts=listed(allowed_hosts or ()),
        origins=listed(cors_origins or ()),
    )
    if not files:
        raise InvalidArgumentError("Name the files to serve.")
    kept_bytes = parse_size(cache_size)
    picture_bytes = kept_bytes // 4
    engine = Engine(
        parallel=parallel,
        most_waiting=queue,
        stored=_stored_contexts(cache_dir, kept_bytes - picture_bytes, output),
    )

    def open_model(path: Path) -> "Model":
        model = running.open(path, context, kv, guessing)
        if picture_bytes:
            folder = None if cache_dir is None else cache_dir / "pictures"
            keep_pictures(model, folder, picture_bytes)
        return model

    try:
        models = Models(
            files,
            engine,
            open_model,
            None if memory is None else parse_size(memory),
            keep_seconds=parse_duration(keep_alive),
            pinned=listed(pin or ()),
        )
        try:
            service = Service(
                engine, models, sampling.config(None), Limits(seconds=timeout), pooling
            )

            stack = contextlib.ExitStack()

            def ready(url: str) -> None:
                stack.enter_context(announced(url, models.names))
                if not place.is_local and not place.keys:
                    output.status(
                        "Anybody who reaches this server can use it: ask for a key with "
                        "--api-key-file."
                    )
                # Last, because whoever waits for the address has then read the warning too.
                output.status(f"{', '.join(models.names)} at {url}, for example {url}/v1/models")

            with stack:
                serve_until_stopped(service, place, ready)
        finally:
            engine.stop(0)
            models.close()
    except BaseException:
        engine.stop(0)
        raise


def _stored_contexts(
    folder: Optional[Path], most_bytes: int, output: Output
) -> "Optional[StoredContexts]":
    """Contexts on disk; without a place for them, a server that nobody gave one goes on."""
    from awq_edge.serve.stored_contexts import StoredContexts
    from awq_edge.user_cache import own_folder

    if most_bytes == 0:
        return None
    if folder is not None:
        return StoredContexts(folder, most_bytes)
    try:
        return StoredContexts(own_folder("contexts"), most_bytes)
    except FileUnreadableError as error:
        output.status(f"Contexts are not kept over restarts. {error}")
        return None
