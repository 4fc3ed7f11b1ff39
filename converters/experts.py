"""What families with a mixture of experts share: names of their tensors, and which layers have one.

Owns the names of experts in checkpoints of both forms, one tensor for each matrix or one for all
experts. Refuses to know a family.
"""

from __future__ import annotations

from collections.abc import Mapping

from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError

from .base import Config, Slice, Stored
from .values import Values, shown

# Ours to theirs; N stands for the layer, E for the expert.
EXPERT_NAMES: Mapping[str, str] = {
    "blk.N.ffn_router": "model.layers.N.mlp.gate",
    "blk.N.expert.E.ffn_gate": "model.layers.N.mlp.experts.E.gate_proj",
    "blk.N.expert.E.ffn_up": "model.layers.N.mlp.experts.E.up_proj",
    "blk.N.expert.E.ffn_down": "model.layers.N.mlp.experts.E.down_proj",
}
MIXTRAL_NAMES: Mapping[str, str] = {
    "blk.N.ffn_router": "model.layers.N.block_sparse_moe.gate",
    "blk.N.expert.E.ffn_gate": "model.layers.N.block_sparse_moe.experts.E.w1",
    "blk.N.expert.E.ffn_up": "model.layers.N.block_sparse_moe.experts.E.w3",
    "blk.N.expert.E.ffn_down": "model.layers.N.block_sparse_moe.experts.E.w2",
}
# What the classes call the block themselves.
MIXTRAL_OTHER_NAMES: Mapping[str, str] = {".block_sparse_moe.": ".mlp."}


def without_feed_forward(names: Mapping[str, str]) -> dict[str, str]:
    """Names of a family all of whose layers have experts."""
    return {ours: name for ours, name in names.items() if not ours.startswith("blk.N.ffn_")} | {
        "blk.N.ffn_norm": names["blk.N.ffn_norm"]
    }


def router_rows(config: Config, a: Architecture, stem: str) -> Stored:
    """Routers are stored as matrices, and ours are vectors, row after row."""
    return Stored(columns=a.hidden_size) if stem in ("ffn_router", "shared_router") else Stored()


def in_one_tensor(a: Architecture, name: str, stored: str) -> Slice | None:
    """Where a matrix lies in a checkpoint that has one tensor for all experts.

    Gates' rows come before those of what they let through.

    Args:
        a: The decoder.
        name: Of one of our tensors, ``blk.3.expert.7.ffn_up.weight``.
        stored: The checkpoint's name of it where each expert has tensors of its own.
    """
    parts = name.split(".")
    if parts[2:3] != ["expert"]:
        return None
    expert, stem = parts[3:5]
    folder = stored.rpartition(f".{expert}.")[0]
    if stem == "ffn_down":
        shape = (a.experts, a.hidden_size, a.expert_size)
        return Slice(f"{folder}.down_proj", shape, int(expert), 0)
    shape = (a.experts, 2 * a.expert_size, a.hidden_size)
    first = a.expert_size if stem == "ffn_up" else 0
    return Slice(f"{folder}.gate_up_proj", shape, int(expert), first)


def expert_layers(config: Values, layers: int) -> tuple[int, ...]:
    """Which layers have experts, as Qwen writes it: every so many, but for a list of others."""
    step = config.integer("decoder_sparse_step")
    if step < 1:
        raise CheckpointError(
            f"config.json has {step} for decoder_sparse_step; it must be positive."
        )
    others = config.get("mlp_only_layers")
    others = [] if others is None else others
    if not isinstance(others, list):
        raise CheckpointError(
            f"config.json should have a list mlp_only_layers; it has {shown(others)}."
        )
    return tuple(int((layer + 1) % step == 0 and layer not in others) for layer in range(layers))


def routing(config: Values) -> str:
    """Whether the shares of those that are chosen are divided by their sum."""
    return "softmax_renormalised" if config.flag("norm_topk_prob") else "softmax"
