"""A whole conversion, from a checkpoint to a model file.

Owns the order of the work, what identifies it, and that a whole file is left or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path

import torch

from awq_edge import __version__
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.calibration import distributed, shipped, text
from awq_edge.checkpoints.vision_tensors import VisionTensors
from awq_edge.conversion import held_out, widths
from awq_edge.conversion.checks import (
    check_disk,
    check_export,
    device_named,
    inputs_of,
    place_of,
)
from awq_edge.conversion.layer_reader import LayerReader
from awq_edge.conversion.manifest import read_manifest
from awq_edge.conversion.options import Options
from awq_edge.conversion.report import Events, Report
from awq_edge.conversion.tower import (
    TowerWalk,
    calibration_tiles,
    stored_bytes,
    tiles_digest,
)
from awq_edge.conversion.training import TIMES, Training, check_learnable
from awq_edge.conversion.trial import check_runs
from awq_edge.conversion.walk import Walk
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.errors import CheckpointError, InvalidArgumentError
from awq_edge.float_model import FloatModel, open_float_model, open_vision_part
from awq_edge.hf_tokenizer import StoredTokenizer, tokenizer_of
from awq_edge.interchange.export import Export
from awq_edge.interchange.scaled_weights import ScaledWeights
from awq_edge.outputs.place import Place, sync_directory
from awq_edge.outputs.workplace import remove_left
from awq_edge.quantize import methods
from awq_edge.quantize.grouped import Quantiser
from awq_edge.vision import preprocessing, prompt


def convert(
    model: str,
    output: Path,
    options: Options,
    *,
    force: bool = False,
    events: Events | None = None,
    export: Export | None = None,
) -> Report:
    """Converts a model; leaves a whole file or none.

    Args:
        model: A checkpoint's directory, a GGUF file or a hub id.
        output: The file to write.
        options: How.
        force: Replace an existing file.
        events: Who listens.
        export: What else to write, once the file has its name.

    Raises:
        AwqEdgeError: Something is wrong with the input, the disk or the options. What is finished
            stays in the work directory unless the input cannot be converted.
        KeyboardInterrupt: As it stands; the work directory of a single process stays and the same
            call resumes.
    """
    events = events or Events()
    place = place_of(output, force)
    if export is not None:
        check_export(export, output)
    device = device_named(options.device)
    source = open_float_model(model)
    place.refuse_inputs(inputs_of(source.checkpoint, options))
    tokenizer = tokenizer_of(source.checkpoint)
    if source.checkpoint.caution is not None:
        events.message(source.checkpoint.caution)
    vision, without = open_vision_part(source)
    if without:
        events.message(f"The file will read text alone: {without}.")
    if export is not None:
        if export.of_one_width:
            options = options.of_one_width()
        entries = {} if tokenizer is None else tokenizer.to_metadata()
        bits = None if options.mixed else int(options.bits)
        export.check_model(
            source.architecture, entries, bits, options.group_size, source.checkpoint
        )
    calibration = _calibration(source, tokenizer, options, events)
    blocks, digest = calibration.blocks, calibration.digest
    if calibration.learned is not None:
        check_learnable(source.architecture, calibration.learned)
    check_disk(output, source.architecture, options, blocks, calibration.learned, export)
    plain = _metadata(source, tokenizer, options, digest)
    tiles = None if vision is None else calibration_tiles(vision, options)
    if tiles is None and options.calibration_images is not None:
        events.message("The calibration pictures are not used: nothing is calibrated on pictures.")
    if vision is not None:
        plain.update(_vision_metadata(vision, tokenizer, options, tiles))
    key = _key(source, options, digest, None if tiles is None else tiles_digest(tiles))
    left = read_manifest(output)
    if not force and (left is None or left.key != key):
        place = Place(output)  # what is there is another conversion's
        place.refuse_inputs(inputs_of(source.checkpoint, options))

    with distributed.joined(device) as processes, contextlib.ExitStack() as stack:
        alone = processes.count == 1
        if options.effort == "high" and not alone:
            raise InvalidArgumentError(
                "--effort high learns in one process; start it without torchrun."
            )
        if processes.rank > 0:  # the first one writes; others may be on other hosts
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="awq-edge-"))
            place, export = Place(Path(folder) / "model"), None
        scaled = export is not None and export.of_scaled_weights
        work = WorkDirectory(
            place.path,
            key,
            events,
            scaled=scaled,
            export=None if export is None else export.path,
            resumable=alone,
            # A whole conversion on a GPU takes minutes, and its states would keep a disk busy.
            states_synced=device.type == "cpu",
        )
        with work:
            if scaled:
                events = dataclasses.replace(events, layer_scaled=work.store_scaled)
            if not work.has_output:
                place.check()  # another conversion may have ended since
            layers = LayerReader(source, device, work.folder)
            if processes.agreed(work.has_model, device):
                for layer in work.layers:
                    events.layer_done(layer, source.architecture.layers)
            else:
                with torch.inference_mode():
                    if vision is not None:
                        tower = TowerWalk(vision, options, device, work, events)
                        source.pictures = tower.run(tiles)
                others = {} if vision is None else stored_bytes(vision.architecture, options)
                if not work.bits:
                    found = widths.choose(
                        source, layers, options, blocks, device, plain, events, others
                    )
                    work.bits_chosen(found.bits, found.divergence)
                chosen = {
                    name: Quantiser(bits, options.group_size) for name, bits in work.bits.items()
                }
                with torch.inference_mode():
                    walk = Walk(source, layers, options, chosen, device, work, events, processes)
                    walk.run(blocks)
                metadata = {**plain, **widths.metadata(chosen, options)}
                training = None
                if calibration.learned is not None:
                    training = Training(source, chosen, options.seed, device, work, events)
                    training.run(calibration.learned)
                names = source.tensor_names() + ([] if vision is None else vision.tensor_names())
                tensors = work.tensors(names)
                if training is not None:
                    tensors = training.sources(tensors)
                work.write_model(metadata, tensors, check_runs, work.packed_sizes)
            report = _report(output, source.architecture, work, vision)
            if work.has_model:
                errors = held_out.divergences(
                    source, layers, work.model, calibration.held_out, device, events
                )
                report = dataclasses.replace(
                    report, texts=calibration.texts, held_out=errors, predicted=work.divergence
                )
            if work.has_model and not work.has_output:
                place.appear(work.model)
            if export is not None and work.has_export:
                remove_left(export.path)
            elif export is not None:
                sync_directory(output.parent)
                weights = ScaledWeights(source, work.scaled) if scaled else None
                export.write(work.model, source, weights, work.export_made)
    return report


@dataclasses.dataclass(frozen=True)
class _Calibration:
    """What a conversion is calibrated on.

    Attributes:
        blocks: Tokens, int64 [b, t]; None for a method without any.
        learned: Of the same texts, those that are learned from; None: nothing learns.
        digest: Of the texts.
        texts: What they are called, and how many blocks are of each.
        held_out: Blocks of each kind to judge by, int64 [1, t].
    """

    blocks: torch.Tensor | None = None
    learned: torch.Tensor | None = None
    digest: str | None = None
    texts: dict[str, int] = dataclasses.field(default_factory=dict)
    held_out: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


def _calibration(
    source: FloatModel, tokenizer: StoredTokenizer | None, options: Options, events: Events
) -> _Calibration:
    if not methods.METHODS[options.method].calibrated:
        return _Calibration()
    if tokenizer is None:
        raise CheckpointError(
            f"{source.checkpoint.directory} holds no tokenizer, neither tokenizer.json nor "
            "tokenizer.model, and calibration needs one; --method rtn does without."
        )
    length = min(options.sequence_length, source.architecture.context_length)
    learning = TIMES * options.samples if options.effort == "high" else 0
    learned = None
    if options.calibration is None:
        kinds = shipped.read_kinds()
        drawn = shipped.kinds_blocks(tokenizer, kinds, options.samples, length, options.seed)
        if learning:
            more = shipped.kinds_blocks(tokenizer, kinds, learning, length, options.seed)
            learned = more.blocks
        digest = shipped.digest(kinds)
        found = _Calibration(drawn.blocks, learned, digest, drawn.counts, drawn.held_out)
    else:
        words = text.read_text(options.calibration)
        blocks = text.token_blocks(tokenizer, words, options.samples, length, options.seed)
        if learning:
            learned = text.token_blocks(tokenizer, words, learning, length, options.seed)
        named = {options.calibration.name: len(blocks)}
        found = _Calibration(blocks, learned, text.text_digest(words), named)
    assert found.blocks is not None
    more_blocks = [] if learned is None else [learned]
    for blocks in (found.blocks, *more_blocks, *found.held_out.values()):
        text.check_tokens(blocks, source.architecture.vocabulary_size)
    if (len(found.blocks), length) != (options.samples, options.sequence_length):
        events.message(
            f"Calibrating on {len(found.blocks)} blocks of {length} tokens: the text holds no "
            "more, or the model was trained for no longer ones."
        )
    return found


def _key(source: FloatModel, options: Options, digest: str | None, images: str | None) -> str:
    """Changes with anything that changes a tensor."""
    settings = {
        **dataclasses.asdict(options),
        "calibration": digest,
        "calibration_images": images,
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
    if options.effort != "normal":
        metadata["awq_edge.quantization.effort"] = options.effort
    if digest is not None:
        metadata["awq_edge.quantization.calibration_sha256"] = digest
    if tokenizer is not None:
        metadata.update(tokenizer.to_metadata())
    return metadata


def _vision_metadata(
    vision: VisionTensors,
    tokenizer: StoredTokenizer | None,
    options: Options,
    tiles: torch.Tensor | None,
) -> dict[str, MetadataValue]:
    """What the file says of its tower."""
    metadata: dict[str, MetadataValue] = {
        **vision.architecture.to_metadata(),
        "awq_edge.vision.family": vision.part.family,
        preprocessing.METADATA_KEY: vision.processor.preprocessing.to_json(),
        prompt.METADATA_KEY: vision.prompt(None if tokenizer is None else tokenizer.json),
        "awq_edge.quantization.vision_bits": options.vision_bits,
        "awq_edge.quantization.vision_group_size": options.group_size,
    }
    if tiles is not None:
        metadata["awq_edge.quantization.calibration_images_sha256"] = tiles_digest(tiles)
    return metadata


def _report(
    output: Path, architecture: Architecture, work: WorkDirectory, vision: VisionTensors | None
) -> Report:
    if not work.has_model:  # the first of several processes alone knows the rest
        return Report(output, architecture, 0, 0.0, 0.0, 0, [])
    tables = architecture.vocabulary_size * architecture.hidden_size
    linears = architecture.linear_parameters()
    seeing = 0 if vision is None else vision.architecture.linear_parameters()
    size = work.model.stat().st_size
    linear_bytes, embedding_bytes = work.numbers["blk."], work.numbers["token_embd"]
    head_bytes = embedding_bytes if architecture.tied_head else work.numbers["output"]
    # Every expert is as likely as the others, as far as anybody knows.
    experts_bytes = work.numbers.get("blk.*.expert.", 0)
    idle_bytes = experts_bytes - experts_bytes * architecture.experts_per_token // max(
        architecture.experts, 1
    )
    return Report(
        path=output,
        architecture=architecture,
        file_bytes=size,
        linear_bits_per_weight=8 * linear_bytes / linears,
        file_bits_per_weight=8
        * size
        / (linears + seeing + tables * (1 if architecture.tied_head else 2)),
        decode_bytes=linear_bytes - idle_bytes + head_bytes,
        layers=work.layers,
        rounds=work.rounds,
        vision_bytes=work.numbers.get("v.", 0) + work.numbers.get("mm.", 0),
    )
