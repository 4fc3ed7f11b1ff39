"""Which keys of a ``quantization_config`` an import knows, and what it makes of each.

Owns the lists: keys that are read, keys that change no number that is stored or computed, and keys
that would. A key on none of them is refused by its name: it may stand for arithmetic that nobody
here computes. Null and empty values say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from awq_edge.errors import UnsupportedError

# AutoAWQ, transformers' AwqConfig and GPTQModel.
AUTOAWQ_READ = frozenset(
    (
        "quant_method",
        "bits",
        "w_bit",
        "group_size",
        "q_group_size",
        "zero_point",
        "version",
        "format",
        "checkpoint_format",
        "backend",
        "pack_dtype",
        "desc_act",
    )
)
AUTOAWQ_HARMLESS = frozenset(
    (
        # Which matrices are floats: what the files hold decides.
        "modules_to_not_convert",
        "modules_in_block_to_quantize",
        "block_name_to_quantize",
        "lm_head",
        # How kernels of other programs are chosen and joined.
        "do_fuse",
        "modules_to_fuse",
        "fuse_max_seq_len",
        "exllama_config",
        "use_exllama",
        "disable_exllama",
        "use_cuda_fp16",
        # How codes, scales and zero-points were found: they are stored.
        "sym",
        "true_sequential",
        "static_groups",
        "damp_percent",
        "damp_auto_increment",
        "act_group_aware",
        "mse",
        "dataset",
        "tokenizer",
        "batch_size",
        "pad_token_id",
        "model_seqlen",
        "module_name_preceding_first_block",
        "cache_block_outputs",
        "max_input_length",
        # Notes: who quantised it, and when.
        "meta",
        "model_name_or_path",
        "model_file_base_name",
    )
)

# compressed-tensors, as llm-compressor writes it.
COMPRESSED_READ = frozenset(
    ("quant_method", "format", "quantization_status", "config_groups", "sparsity_config")
)
COMPRESSED_HARMLESS = frozenset(
    (
        "ignore",  # which matrices are floats: what the files hold decides
        "kv_cache_scheme",  # of another program's cache; ours has its own kinds
        "global_compression_ratio",
        "version",  # of the package that wrote it
    )
)
GROUP_READ = frozenset(("weights", "input_activations", "output_activations", "format"))
GROUP_HARMLESS = frozenset(("targets",))  # what the files hold decides
WEIGHTS_READ = frozenset(
    ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "block_structure")
)
WEIGHTS_HARMLESS = frozenset(
    (
        "actorder",  # columns out of order come with the tensor weight_g_idx, which is refused
        "observer",  # how scales were found
        "observer_kwargs",
        "scale_dtype",  # the stored tensors have their types
        "zp_dtype",
    )
)

# Named, so that the sentence can say what they are.
_ARITHMETIC = {
    "transform_config": "inputs are rotated while the model runs",
    "rotation": "weights are rotated",
    "dynamic": "matrices have widths of their own",
    "adapter": "an adapter is added to the matrices",
}


def refuse_unknown(
    where: str, settings: Mapping[str, Any], read: Set[str], harmless: Set[str]
) -> None:
    """Refuses a table that holds a key which is neither read nor known to be harmless.

    Args:
        where: The table, for the error text.
        settings: The table.
        read: Keys that the caller reads.
        harmless: Keys that change nothing.

    Raises:
        UnsupportedError: There is another one, and it says something.
    """
    for key, value in settings.items():
        if key in read or key in harmless or value is None or value in ({}, [], ""):
            continue
        what = _ARITHMETIC.get(key, "what it changes is not known")
        shown = key if key.isprintable() and len(key) <= 64 else repr(key[:64])
        raise UnsupportedError(
            f"{where} has the key {shown}: {what}, which is not supported; import another "
            "checkpoint, or convert the original float one."
        )
