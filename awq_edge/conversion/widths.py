"""How many bits every packed matrix gets: what a byte budget buys, or the same ones.

Owns the sizes that the budget is made of; refuses to measure (``calibration.sensitivity``) and to
solve (``quantize.budget``).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from awq_edge import layouts, model_file
from awq_edge.architecture import MetadataValue
from awq_edge.calibration import gradients, sensitivity
from awq_edge.conversion.extremes import solvable
from awq_edge.conversion.options import WIDENED, Options
from awq_edge.conversion.report import Events
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.float_model import FloatModel
from awq_edge.quantities import size_text
from awq_edge.quantize import budget, methods
from awq_edge.quantize.grouped import Quantiser

# Expected divergence, in nats, below which a default file takes no further bytes: what a perplexity
# grows by is about this or less, and half a per cent is hardly noticed.
_GOOD_ENOUGH = 0.006
_STEPS = 4  # on the way to all bytes that it may take
_LEAST_OF_TABLES = 4  # bits of embedding and head: of few bits, the harm is known least there


@dataclasses.dataclass(frozen=True)
class Widths:
    """What was chosen.

    Attributes:
        bits: Of every packed matrix, by name.
        divergence: What the file's divergence from the float model will be about, in nats; None if
            nothing was measured.
    """

    bits: dict[str, int]
    divergence: float | None = None


def choose(
    source: FloatModel,
    layers: gradients.Layers,
    options: Options,
    blocks: torch.Tensor | None,
    device: torch.device,
    plain: Mapping[str, MetadataValue],
    events: Events,
    others: Mapping[str, int],
) -> Widths:
    """Chooses the bits of every packed matrix.

    Args:
        source: The float model.
        layers: Reads its layers.
        options: What the user chose.
        blocks: Calibration tokens, int64 [b, t]; None for a method that needs none.
        device: Where sensitivity is measured.
        plain: What the file will say of itself, widths apart.
        events: Who listens.
        others: Bytes of what the file holds besides, a tower for pictures, by name.

    Raises:
        InvalidArgumentError: The size is smaller than any file of the model.
    """
    a = source.architecture
    names = [name for name in source.tensor_names() if len(source.shape(name)) == 2]
    embedding_bits, head_bits = options.tables(tied=a.tied_head)
    tables = {"token_embd.weight": embedding_bits}
    if not a.tied_head:
        tables["output.weight"] = head_bits
    # One group size for all: matrices that read the same input share its rounding on the device.
    group_size = options.group_size
    if not options.measured:
        chosen = {name: tables.get(name, int(options.bits)) for name in names}
        return Widths(chosen)

    sizes = {
        name: {
            bits: _aligned(layouts.Layout(n, k, bits, group_size).total_bytes)
            for bits in layouts.BITS
        }
        for name in names
        for n, k in [source.shape(name)]
    }
    fixed, extra = tables, 0
    if options.size is not None:
        fixed = {}
        container = _container_bytes(source, options, plain, others)
        smallest = container + sum(min(by_bits.values()) for by_bits in sizes.values())
        if options.size < smallest:
            raise InvalidArgumentError(
                f"No file of {options.size} bytes can hold {source.checkpoint.name}: the "
                f"smallest possible one has {smallest} bytes ({size_text(smallest)})."
            )
        total = options.size - container
    elif options.mixed:
        # Codes alone count: a width of 3.5 bits means the same whatever the group size.
        for name in names:
            n, k = source.shape(name)
            sizes[name] = {bits: n * k * bits // 8 for bits in layouts.BITS}
        total = int(a.linear_parameters() * options.bits / 8)
    else:
        if not options.tables_given:
            fixed = {}
        plainly = sum(sizes[name][tables.get(name, int(options.bits))] for name in names)
        total = plainly - sum(sizes[name][bits] for name, bits in fixed.items())
        extra = int(plainly * (WIDENED - 1))
        for name in names:
            least = max(_LEAST_OF_TABLES if name in tables else 0, int(options.bits))
            sizes[name] = {bits: size for bits, size in sizes[name].items() if bits >= least}
    assert blocks is not None
    events.message("Measuring what every width of every matrix costs in accuracy …")
    damping = methods.METHODS[options.method].damping
    with solvable("the model"):
        measured = sensitivity.measure(source, layers, blocks, group_size, device, damping)
    harms = [harm for by_bits in measured.harms.values() for harm in by_bits.values()]
    if not all(math.isfinite(harm) for harm in (*harms, measured.inputs)):
        if options.mixed:
            raise UnsupportedError(
                "What widths of the model's matrices cost cannot be measured: its weights or norms "
                "are too extreme. A whole number of --bits without --size needs no measurement."
            )
        return Widths({name: tables.get(name, int(options.bits)) for name in names})
    items = [budget.Item(name, sizes[name], measured.harms[name]) for name in names]
    free = [item for item in items if item.name not in fixed]
    for step in range(_STEPS + 1):
        chosen = {**fixed, **budget.solve(free, total + extra * step // _STEPS)}
        divergence = budget.total_harm(items, chosen) + measured.inputs
        if not extra or divergence <= _GOOD_ENOUGH:
            break
    return Widths(chosen, divergence)


def _container_bytes(
    source: FloatModel,
    options: Options,
    plain: Mapping[str, MetadataValue],
    others: Mapping[str, int],
) -> int:
    """How many bytes of the file are no packed matrix of the decoder: those of an empty one.

    Args:
        source: The float model.
        options: What the user chose.
        plain: What the file will say of itself, widths apart.
        others: Bytes of tensors besides, by name.
    """
    names, shapes = source.tensor_names(), source.shape
    matrices = [name for name in names if len(shapes(name)) == 2]
    told = {**plain, **metadata(dict.fromkeys(matrices, Quantiser(4, 128)), options)}
    tensors: list[tuple[str, model_file.TensorSource]] = [
        (name, b"" if name in matrices else np.zeros(shapes(name), dtype=np.float32))
        for name in names
    ]
    tensors += [(name, b"") for name in others]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty"
        model_file.write_model(path, told, tensors)
        return path.stat().st_size + sum(_aligned(size) for size in others.values())


def metadata(widths: Mapping[str, Quantiser], options: Options) -> dict[str, MetadataValue]:
    """The widths as asked for, or what came nearest to them; each matrix's header decides."""
    linears = [quantiser for name, quantiser in widths.items() if name.startswith("blk.")]
    embedding = widths["token_embd.weight"]
    head = widths.get("output.weight", embedding)
    mean = sum(quantiser.bits for quantiser in linears) / len(linears)
    return {
        "awq_edge.quantization.bits": round(mean if options.mixed else options.bits),
        "awq_edge.quantization.group_size": max(q.group_size for q in linears),
        "awq_edge.quantization.head_bits": head.bits,
        "awq_edge.quantization.embedding_bits": embedding.bits,
    }


def _aligned(size: int) -> int:
    return -(-size // layouts.ALIGNMENT) * layouts.ALIGNMENT
