"""The resampler of a tower in PyTorch: a fixed number of rows for any number of them.

Owns its mathematics (``Resampler`` in ``vision/architecture.py`` says what a layer is). Refuses
towers and connectors: ``torch_tower.py`` has those.

Shapes: b pictures, n rows of the tower, m rows of the resampler, E their width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from awq_edge.torch_decoder import WeightSource, activated, multiply
from awq_edge.vision.architecture import Resampler

# Hears what a matrix reads, by its name in a model file.
Watch = Callable[[str, torch.Tensor], None]


def resampled(
    resampler: Resampler, weights: WeightSource, rows: torch.Tensor, watch: Watch | None = None
) -> torch.Tensor:
    """What a resampler makes of a tower's rows.

    Args:
        resampler: Its record.
        weights: Gives its tensors by the names of a model file.
        rows: float32 [b, n, E].
        watch: Hears the input of every matrix, before the matrix is asked for.

    Returns:
        float32 [b, m, E].
    """
    r = resampler
    stream = weights("v.resampler.latents").view(1, r.rows, -1).expand(len(rows), -1, -1)
    for layer in range(r.layers):
        prefix = f"v.resampler.{layer}."

        def norm(name: str, x: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            weight, bias = (weights(f"{prefix}{name}.{kind}") for kind in ("weight", "bias"))
            return F.layer_norm(x, x.shape[-1:], weight, bias, r.norm_epsilon)

        def product(name: str, x: torch.Tensor, prefix: str = prefix) -> torch.Tensor:
            if watch is not None:
                watch(f"{prefix}{name}.weight", x)
            return multiply(x, weights(f"{prefix}{name}.weight"), None)

        def heads(name: str, x: torch.Tensor) -> torch.Tensor:
            split = product(name, x).view(*x.shape[:2], r.heads, r.head_size)
            normed = r.qk_norm and name != "attn_v"
            return (norm(f"{name}_norm", split) if normed else split).transpose(1, 2)

        own = norm("ln1", stream)
        read = torch.cat((norm("ln_rows", rows), own), dim=1)
        queries, keys, values = heads("attn_q", own), heads("attn_k", read), heads("attn_v", read)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        mixed = mixed.transpose(1, 2).reshape(len(rows), r.rows, r.size)
        stream = stream + product("attn_out", mixed)
        wide = activated(r.activation, product("ffn_up", norm("ln2", stream)))
        stream = stream + product("ffn_down", wide)
    weight, bias = (weights(f"v.resampler.post_ln.{kind}") for kind in ("weight", "bias"))
    return F.layer_norm(stream, stream.shape[-1:], weight, bias, r.norm_epsilon)
