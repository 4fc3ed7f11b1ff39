"""How far a finished file is from its float model on texts that it was not calibrated on.

Owns the comparison, kind by kind: a calibration fits what it is shown, and only what was put aside
tells what it is worth elsewhere. Refuses to judge: the figures stand in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from awq_edge import torch_decoder
from awq_edge.conversion.layer_reader import LayerReader
from awq_edge.conversion.report import Events
from awq_edge.float_model import FloatModel
from awq_edge.stages import head_name
from awq_edge.torch_decoder import Layer, Positions

_ROWS = 64  # of logits of both models, compared at once


def divergences(
    source: FloatModel,
    layers: LayerReader,
    path: Path,
    blocks: Mapping[str, torch.Tensor],
    device: torch.device,
    events: Events,
) -> dict[str, float]:
    """Mean divergence of the file's predictions over the later half of each block, in nats.

    Args:
        source: The float model.
        layers: Its layers, which are read once more.
        path: The finished file.
        blocks: Tokens, int64 [1, t], by the kind of their text.
        device: Where the float model is computed.
        events: Who hears of it.
    """
    if not blocks:
        return {}
    from awq_edge.accuracy.perplexity import SessionSource
    from awq_edge.model import Model

    events.note("comparing with the float model")
    a = source.architecture
    states = _float_states(source, layers, torch.cat(list(blocks.values())), device)
    head = source(head_name(a), device)
    bias = source("output.bias", device) if a.head_bias else None
    found = {}
    length = next(iter(blocks.values())).shape[1]
    # The conversion's own memory was enough; a session of one block takes little beside it.
    with Model.open(path, context_length=length, device="cpu", check_memory=False) as packed:
        logits_of_file = SessionSource(packed.session())
        for (kind, tokens), normed in zip(blocks.items(), states):
            ids = tokens[0].tolist()
            first = len(ids) // 2
            rows = np.concatenate(list(logits_of_file.next_token_logits(ids, first)))
            total = 0.0
            for begin in range(0, len(rows), _ROWS):
                part = normed[first + begin : first + begin + _ROWS]
                product = torch_decoder.multiply(part, head, None)
                p = torch_decoder.logits_of(a, product, bias).double().log_softmax(-1)
                q = torch.from_numpy(rows[begin : begin + _ROWS]).to(p.device)
                total += float((p.exp() * (p - q.double().log_softmax(-1))).sum())
            found[kind] = total / len(rows)
    return found


@torch.inference_mode()
def _float_states(
    source: FloatModel, layers: LayerReader, tokens: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """What the head reads, [b, t, hidden]."""
    a = source.architecture
    rows = source.rows("token_embd.weight", tokens).to(device)
    states = torch_decoder.embedded(a, source, rows)
    positions = Positions.of(a, tokens.shape[1], source, device)
    for number, weights in layers(range(a.layers)):
        layer = Layer(a, number, weights, positions)
        states = torch.cat([layer.run(block[None]) for block in states])
        del weights, layer  # before the next layer is read
    return torch_decoder.ended(a, source, states)
