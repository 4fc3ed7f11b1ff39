"""Random decoder layers of an odd shape, and samples of what they read."""

from __future__ import annotations

import dataclasses

import torch

from awq_edge import stages
from awq_edge.architecture import Architecture
from awq_edge.quantize.probe import Probe, Weights
from awq_edge.quantize.statistics import InputStatistics
from awq_edge.torch_decoder import Positions, WeightSource


def architecture(**changes: object) -> Architecture:
    plain = Architecture(
        layers=1,
        hidden_size=72,  # no multiple of any group size
        vocabulary_size=11,
        context_length=64,
        heads=6,
        kv_heads=2,
        head_size=12,
        feed_forward_size=100,
        norm_epsilon=1e-5,
        rope_theta=1000.0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def random_weights(a: Architecture) -> Weights:
    weights = {}
    for name in stages.layer_tensor_names(a, 0):
        shape = stages.tensor_shape(a, name)
        weights[name] = (
            torch.randn(shape) / shape[-1] ** 0.5 if len(shape) == 2 else torch.randn(shape)
        )
        if "norm" in name:
            weights[name] = 1 + 0.3 * torch.randn(shape)
    return weights


def position_source(a: Architecture) -> WeightSource:
    """What attention knows of positions: frequencies, or slopes of any size."""
    vectors = {
        "rope.inverse_frequencies": torch.from_numpy(a.inverse_frequencies()),
        "alibi.slopes": 2.0 ** -(1 + torch.arange(a.heads).float()),
    }
    return vectors.__getitem__


def probe_of(a: Architecture, blocks: int = 3, tokens: int = 20) -> Probe:
    """Hidden states with a few large channels, as trained models have them."""
    hidden = torch.randn(blocks, tokens, a.hidden_size)
    hidden[..., ::17] *= 12.0
    positions = Positions.of(a, tokens, position_source(a))
    return Probe(a, 0, hidden, positions)


def statistics_of(probe: Probe, weights: Weights, group_size: int) -> dict[str, InputStatistics]:
    """Of what the layer's stages read, by their names."""
    statistics = {}
    for name, x in probe.inputs(weights).items():
        statistics[name] = InputStatistics(x.shape[-1], group_size, x.device)
        statistics[name].update(x)
    return statistics
