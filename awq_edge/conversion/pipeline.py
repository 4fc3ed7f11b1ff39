"""A whole conversion, from a checkpoint to a model file.

Owns the order of the work, what identifies it, and that a whole file is left or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch

from awq_edge import __version__, model_file
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.calibration import distributed, text
from awq_edge.conversion import widths
from awq_edge.conversion.checks import check_disk, check_output, device_named
from awq_edge.conversion.options import Options
from awq_edge.conversion.report import Events, Report
from awq_edge.conversion.trial import check_runs
from awq_edge.conversion.walk import Walk
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.errors import CheckpointError
from awq_edge.float_model import FloatModel, open_float_model
from awq_edge.hf_tokenizer import StoredTokenizer, read_tokenizer
from awq_edge.quantize import methods


def convert(
    model: str,
    output: Path,
    options: Options,
    *,
    force: bool = False,
    events: Events | None = None,
) -> Report:
    """Converts a model; leaves a whole file or none.

    Args:
        model: A checkpoint's directory or a hub id.
        output: The file to write.
        options: How.
        force: Replace an existing file.
        events: Who listens.

    Raises:
        AwqEdgeError: Something is wrong with the input, the disk or the options.
        KeyboardInterrupt: As it stands; the work directory of a single process stays and the same
            call resumes.
    """
    events = events or Events()
    check_output(output, force)
    device = device_named(options.device)
    source = open_float_model(model)
    tokenizer = read_tokenizer(source.checkpoint.directory, source.checkpoint.config)
    blocks, digest = _calibration(source, tokenizer, options, events)
    check_disk(output, source.architecture, options, blocks)
    plain = _metadata(source, tokenizer, options, digest)
    chosen = widths.choose(source, options, blocks, device, plain, events)

    with distributed.joined(device) as processes:
        path, written = output.with_name(output.name + ".partial"), output
        if processes.count > 1 and processes.rank == 0:
            # Interrupted work of several processes is not resumed: it may lie on several hosts.
            shutil.rmtree(path, ignore_errors=True)
        if processes.rank > 0:
            path = Path(tempfile.mkdtemp(prefix="awq-edge-")) / "work.partial"
            written = path.with_name("model")
        work = WorkDirectory(path, _key(source, options, digest), events)
        try:
            with work:
                with torch.inference_mode():
                    Walk(source, options, chosen, device, work, events, processes).run(blocks)
                metadata = {**plain, **widths.metadata(chosen)}
                model_file.write_model(written, metadata, work.tensors(source), check_runs)
                report = _report(written, source.architecture, work)
            work.finished()
        finally:
            if processes.count > 1:
                shutil.rmtree(path.parent if processes.rank > 0 else path, ignore_errors=True)
    return dataclasses.replace(report, path=output)


def _calibration(
    source: FloatModel, tokenizer: StoredTokenizer | None, options: Options, events: Events
) -> tuple[torch.Tensor | None, str | None]:
    """Calibration tokens [b, t] and the digest of their text; None for a method without any."""
    if not methods.METHODS[options.method].calibrated:
        return None, None
    if tokenizer is None:
        raise CheckpointError(
            f"{source.checkpoint.directory} holds neither tokenizer.json nor tokenizer.model, and "
            "calibration needs one; --method rtn does without."
        )
    words = text.read_text(options.calibration)
    length = min(options.sequence_length, source.architecture.context_length)
    blocks = text.token_blocks(tokenizer, words, options.samples, length, options.seed)
    text.check_tokens(blocks, source.architecture.vocabulary_size)
    if (len(blocks), length) != (options.samples, options.sequence_length):
        events.message(
            f"Calibrating on {len(blocks)} blocks of {length} tokens: the text holds no more, or "
            "the model was trained for no longer ones."
        )
    return blocks, text.text_digest(words)


def _key(source: FloatModel, options: Options, digest: str | None) -> str:
    """Changes with anything that changes a tensor."""
    settings = {
        **dataclasses.asdict(options),
        "calibration": digest,
        "scaled_weights": str(options.scaled_weights),
    }
    identity = [__version__, torch.__version__, source.checkpoint.identity(), settings]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _metadata(
    source: FloatModel, tokenizer: StoredTokenizer | None, options: Options, digest: str | None
) -> dict[str, MetadataValue]:
    """What the file says of itself, widths apart."""
    metadata: dict[str, MetadataValue] = {
        "general.name": source.checkpoint.name,
        **source.architecture.to_metadata(),
        "awq_edge.quantization.method": options.method,
        "awq_edge.quantization.tool_version": __version__,
    }
    if digest is not None:
        metadata["awq_edge.quantization.calibration_sha256"] = digest
    if tokenizer is not None:
        metadata.update(tokenizer.to_metadata())
    return metadata


def _report(output: Path, architecture: Architecture, work: WorkDirectory) -> Report:
    tables = architecture.vocabulary_size * architecture.hidden_size
    linears = architecture.linear_parameters()
    size = output.stat().st_size
    linear_bytes, embedding_bytes = work.packed_bytes("blk."), work.packed_bytes("token_embd")
    head_bytes = embedding_bytes if architecture.tied_head else work.packed_bytes("output")
    return Report(
        path=output,
        architecture=architecture,
        file_bytes=size,
        linear_bits_per_weight=8 * linear_bytes / linears,
        file_bits_per_weight=8 * size / (linears + tables * (1 if architecture.tied_head else 2)),
        decode_bytes=linear_bytes + head_bytes,
        layers=work.layers,
    )
