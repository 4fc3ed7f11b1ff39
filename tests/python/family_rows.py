"""Small random models of a family, written by transformers, whose every term matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=64,
    pad_token_id=None,
)


def row_model(model_type: str, keys: Mapping[str, Any], seed: int = 0) -> Any:
    """A model of transformers in float32, with attention that caps its scores where asked to.

    Args:
        model_type: Of config.json.
        keys: What differs from SIZES; None of one that a class does not have.
        seed: Of the weights.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **keys})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    around_one = 0.0 if model_type.startswith("gemma") else 1.0
    spread = 0.3 if model_type.startswith("gemma") else 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(around_one - spread, around_one + spread)
            else:
                parameter.normal_(0.0, 0.25)
    return model


def difference(model: Any, directory: Path, tokens: int) -> float:
    """Largest difference of logits, our decoder's on the files against the model's own, relative.

    Args:
        model: Of transformers.
        directory: Where it is saved.
        tokens: How many are read.
    """
    import torch

    from awq_edge import torch_decoder
    from awq_edge.float_model import open_float_model

    ours = open_float_model(str(directory))
    torch.manual_seed(1)
    text = torch.randint(0, ours.architecture.vocabulary_size, (2, tokens))
    with torch.no_grad():
        theirs = model(text).logits
    found = torch_decoder.logits(ours, ours.architecture, text)
    return float((found - theirs).abs().max() / theirs.abs().max())
