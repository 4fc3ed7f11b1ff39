"""What the commands below ``awq-edge eval`` share: a model to measure, packed or in floats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.checkpoints.files import open_regular
from awq_edge.cli._groups import Running
from awq_edge.errors import (
    AwqEdgeError,
    CheckpointError,
    FileUnreadableError,
    InvalidArgumentError,
)
from awq_edge.text_files import MOST_BYTES, read_whole

if TYPE_CHECKING:
    from awq_edge.accuracy.perplexity import LogitsSource
    from awq_edge.accuracy.task_models import TaskModel
    from awq_edge.architecture import MetadataValue
    from awq_edge.float_model import FloatModel
    from awq_edge.tokenizer import Tokenizer


@dataclass(frozen=True)
class Evaluated:
    """An open model.

    Attributes:
        source: Gives its logits.
        tokenizer: Its own.
        details: What to say about it in a JSON document.
    """

    source: LogitsSource
    tokenizer: Tokenizer
    details: dict[str, str]


@contextmanager
def open_evaluated(
    path: Path,
    *,
    context: int,
    running: Running,
    kv: str = "fp16",
) -> Iterator[Evaluated]:
    """Opens a packed file or a float checkpoint while the block runs.

    Args:
        path: A packed file, a Hugging Face directory, or a GGUF file of llama.cpp's.
        context: Tokens that are fed at most.
        running: How a packed file is run.
        kv: How a packed file's session keeps keys and values.

    Raises:
        InvalidArgumentError: The context is longer than the model knows, or keys and values of a
            float model are to be kept otherwise.
    """
    if _holds_floats(path):
        source, tokenizer, floats, _ = _open_checkpoint(path)
        longest = floats.architecture.context_length
        if context > longest:
            raise InvalidArgumentError(
                f"{path} was trained for contexts of {longest} tokens, not of {context}; use a "
                "shorter --context."
            )
        if kv != "fp16":
            raise InvalidArgumentError(
                f"--kv {kv} is how a packed file's runtime keeps keys and values; leave it out for "
                "a float model."
            )
        yield Evaluated(source, tokenizer, {"weights": "float32"})
        return
    from awq_edge.accuracy.perplexity import SessionSource

    with running.open(path, context, kv) as packed:
        session = packed.session()
        details = {"weights": "packed", "kernels": session.kernels, "kv": session.kv}
        yield Evaluated(SessionSource(session), packed.tokenizer, details)


@contextmanager
def open_task_model(
    path: Path,
    *,
    context: int | None = None,
    running: Running,
) -> Iterator[TaskModel]:
    """As :func:`open_evaluated`, for tasks: with continuations and chat prompts."""
    from awq_edge.accuracy.task_models import FloatTaskModel, PackedTaskModel

    if _holds_floats(path):
        source, tokenizer, floats, metadata = _open_checkpoint(path)
        longest = floats.architecture.context_length
        yield FloatTaskModel(source, tokenizer, min(context or longest, longest), metadata)
        return
    with running.open(path, context) as packed:
        yield PackedTaskModel(packed)


def read_text(path: Path, first_bytes: int | None) -> str:
    """A UTF-8 text, or its beginning."""
    try:
        if first_bytes is None:
            content = read_whole(path)
        else:
            with path.open("rb") as file:
                content = file.read(min(first_bytes, MOST_BYTES))
    except OSError as error:
        raise FileUnreadableError(f"{path}: {error.strerror}.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that --bytes cut in two is no fault of the text.
        if first_bytes is not None and error.end == len(content) and len(content) - error.start < 4:
            return content[: error.start].decode("utf-8")
        raise InvalidArgumentError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv."
        ) from error


def _holds_floats(path: Path) -> bool:
    """Whether a path is a checkpoint: a directory, or a GGUF file that is not one of ours.

    Writers put the architecture first, so that much is read; torch is not needed to know.
    """
    if path.is_dir():
        return True
    try:
        with open_regular(path) as file:
            beginning = file.read(256)
    except (AwqEdgeError, OSError):
        return False  # told by whoever opens it
    return beginning.startswith(b"GGUF") and b"awq-edge" not in beginning


def _open_checkpoint(
    directory: Path,
) -> tuple[LogitsSource, Tokenizer, FloatModel, dict[str, MetadataValue]]:
    from awq_edge.accuracy.checkpoint_logits import CheckpointSource
    from awq_edge.float_model import open_float_model
    from awq_edge.hf_tokenizer import tokenizer_of
    from awq_edge.tokenizer import Tokenizer

    floats = open_float_model(str(directory))
    stored = tokenizer_of(floats.checkpoint)
    if stored is None:
        raise CheckpointError(f"{directory} holds neither tokenizer.json nor tokenizer.model.")
    metadata = stored.to_metadata()
    return CheckpointSource(floats), Tokenizer.from_metadata(metadata), floats, metadata
