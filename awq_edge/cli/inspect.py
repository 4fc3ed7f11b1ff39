"""``awq-edge inspect``: what a packed file holds, what it needs, and whether it is intact."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli._options import Context, Json, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.model import Model
from awq_edge.quantities import count_text, size_text

if TYPE_CHECKING:
    from awq_edge._native import TensorInfo, Value, VisionInfo

# Longer values (a tokenizer, a template) would push everything else off the screen.
_MAX_VALUE_CHARACTERS = 64


def inspect(
    file: ModelFile,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole file: checksum, finite scales.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    context: Context = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a packed model file holds and how much memory it needs."""
    output = Output(as_json=as_json, quiet=quiet)
    with Model.open(file, context_length=context) as model:
        checksum = _verify(model, output) if verify else None
        info, need = model.info, model.memory()
        vision = model.native.vision() if model.sees_pictures else None
        layer_bits, all_bits = (
            _bits_per_weight(t for t in model.tensors if t.name.startswith("blk.")),
            _bits_per_weight(model.tensors),
        )
        output.fields(
            {
                "parameters": count_text(info.parameters),
                "file": size_text(info.file_bytes),
                "bits per weight": f"{layer_bits:.2f} in the layers, {all_bits:.2f} in all",
                "read per token": size_text(info.decode_bytes),
                "trained context": f"{info.context_length} tokens",
                **({} if vision is None else {"pictures": _pictures(vision)}),
                "memory": (
                    f"{size_text(need.total_bytes)} for {model.context_length} tokens: weights "
                    f"{size_text(need.weight_bytes)}, keys and values "
                    f"{size_text(need.cache_bytes)}, working memory "
                    f"{size_text(need.scratch_bytes)}"
                ),
            },
            title=model.name,
        )
        output.line()
        output.fields({key: _short(value) for key, value in model.metadata.items()})
        if tensors:
            output.table(
                ("tensor", "rows", "columns", "bits", "group", "bytes", "offset"),
                [
                    (t.name, t.rows, t.columns, t.bits, t.group_size or "", t.bytes, t.offset)
                    for t in model.tensors
                ],
            )
        if checksum is not None:
            output.line(f"\nThe checksum agrees and every scale is finite: {checksum}")
        output.json(
            {
                "file": str(file),
                "name": model.name,
                "info": vars(info),
                **({} if vision is None else {"vision": _vision_document(vision)}),
                "bits_per_weight": {"layers": layer_bits, "all": all_bits},
                "memory": {"context_length": model.context_length, **vars(need)},
                "metadata": model.metadata,
                **({"tensors": [vars(t) for t in model.tensors]} if tensors else {}),
                **({"sha256": checksum} if checksum is not None else {}),
            }
        )


def _pictures(vision: "VisionInfo") -> str:
    read = f"{vision.image_size}x{vision.image_size} pixels in patches of {vision.patch_size}, "
    if vision.session_bytes:
        read += f"looked at as {vision.tokens} rows, {size_text(vision.session_bytes)} each"
    else:
        read += f"{vision.tokens} tokens each"
    if vision.step:
        read = f"of any shape in patches of {vision.patch_size}, a token for {vision.step}x"
        read += f"{vision.step} pixels"
    return (
        f"{read}; a tower of {vision.layers} layers and {vision.hidden_size} wide, "
        f"{size_text(vision.weight_bytes)}"
    )


def _vision_document(vision: "VisionInfo") -> dict[str, object]:
    """Numbers alone: a vector of floats is nothing to look at."""
    return {name: value for name, value in vars(vision).items() if name != "newline"}


def _verify(model: Model, output: Output) -> str:
    from awq_edge.verification import verify

    with output.progress("Verifying", sum(tensor.bytes for tensor in model.tensors)) as bar:
        return verify(model, bar.advance)


def _bits_per_weight(tensors: Iterable["TensorInfo"]) -> float:
    """Of packed matrices, with scales, zero-points, padding and header."""
    packed = [tensor for tensor in tensors if tensor.group_size]
    weights = sum(tensor.rows * tensor.columns for tensor in packed)
    return 8 * sum(tensor.bytes for tensor in packed) / weights if weights else 0.0


def _short(value: "Value") -> str:
    some = value[:_MAX_VALUE_CHARACTERS] if isinstance(value, list) else value
    text = " ".join(str(some).split())
    if len(text) <= _MAX_VALUE_CHARACTERS:
        return text
    size = f"{len(value)} values" if isinstance(value, list) else f"{len(str(value))} characters"
    return f"{text[:_MAX_VALUE_CHARACTERS]}… ({size})"
