"""Random models with experts: every family and edge case, weights that make each term matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=64,
    pad_token_id=None,
)
_QWEN2: dict[str, Any] = dict(
    num_hidden_layers=4,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=48,
)
_EIGHT: dict[str, Any] = dict(num_experts=8, num_experts_per_tok=3)
_FACTORS = dict(
    short_factor=[1 + 0.1 * i for i in range(8)], long_factor=[2 + 0.5 * i for i in range(8)]
)
# Each exercises what its name says; the classes of transformers, and their keys.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", dict(num_local_experts=4)),
    "mixtral-window": (
        "Mixtral",
        dict(num_local_experts=8, num_experts_per_tok=3, head_dim=32, sliding_window=8),
    ),
    "qwen2_moe-dense-layers": (
        "Qwen2Moe",
        _QWEN2 | dict(decoder_sparse_step=2, mlp_only_layers=[3]),
    ),
    "qwen2_moe-renormalised": (
        "Qwen2Moe",
        _QWEN2
        | dict(norm_topk_prob=True, use_sliding_window=True, sliding_window=8, max_window_layers=3),
    ),
    "qwen3_moe-renormalised": (
        "Qwen3Moe",
        _EIGHT | dict(moe_intermediate_size=32, head_dim=32, norm_topk_prob=True),
    ),
    "qwen3_moe-dense-layer": (
        "Qwen3Moe",
        _EIGHT | dict(moe_intermediate_size=32, mlp_only_layers=[0]),
    ),
    "olmoe": ("Olmoe", _EIGHT),
    "olmoe-clamped": (
        "Olmoe",
        _EIGHT | dict(num_key_value_heads=4, clip_qkv=0.5, norm_topk_prob=True),
    ),
    "phimoe": (
        "Phimoe",
        dict(num_local_experts=6, attention_bias=True, lm_head_bias=True, router_jitter_noise=0.2),
    ),
    "phimoe-longrope": (
        "Phimoe",
        dict(
            num_local_experts=6,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                short_mscale=1.2,
                long_mscale=1.2,
                original_max_position_embeddings=32,
                **_FACTORS,
            ),
        ),
    ),
}


def random_model(name: str, seed: int = 0, **sizes: Any) -> Any:
    """A transformers model in float32, eager attention."""
    import torch
    import transformers

    family, options = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **options, **sizes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.25)
            elif "norm" in key:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.25)
    return model


def save_stacked(model: Any, directory: Path) -> Path:
    """Writes a checkpoint whose experts lie in one tensor for each layer, as in memory."""
    import safetensors.torch

    directory.mkdir()
    model.config.save_pretrained(directory)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.model_type == "mixtral":  # its older name for the block
        tensors = {
            name.replace(".mlp.", ".block_sparse_moe."): tensor for name, tensor in tensors.items()
        }
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory
