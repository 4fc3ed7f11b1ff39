"""Time and memory of a conversion: random weights of a named shape, the shipped calibration text.

    python benchmarks/conversion.py llama-2-7b --device cuda
    python benchmarks/conversion.py llama-2-7b --layers 1 --vocabulary 8192

Owns the making of the checkpoint and the measuring. Time and memory do not depend on what the
weights are. Prints the seconds of every layer, the peak of resident memory and of a GPU's memory.
Under ``torchrun`` every process reports for itself; make the checkpoint before, with --make-only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import CONTEXT, SHAPES, Shape

from awq_edge.conversion import Events, Options, convert

TOKENIZER = Path(__file__).parent.parent / "examples" / "novels-7m"
# Peaks of activations differ widely between channels in real models: norms that do, too.
NORM_SPREAD = 0.5


def make_checkpoint(shape: Shape, directory: Path) -> None:
    """Writes a Llama checkpoint in bfloat16, one file a layer."""
    directory.mkdir(parents=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    files: dict[str, str] = {}

    def matrix(n: int, k: int) -> torch.Tensor:
        values = torch.randn(n, k, device=device, generator=generator)
        return values.mul_(0.7 / k**0.5).bfloat16().cpu()

    def norm() -> torch.Tensor:
        values = torch.randn(shape.hidden, device=device, generator=generator)
        return (1 + NORM_SPREAD * values).abs().bfloat16().cpu()

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, directory / name)
        files.update(dict.fromkeys(tensors, name))

    tables = {"model.embed_tokens.weight": matrix(shape.vocabulary, shape.hidden)}
    if not shape.tied:
        tables["lm_head.weight"] = matrix(shape.vocabulary, shape.hidden)
    save("tables.safetensors", {**tables, "model.norm.weight": norm()})
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors = {
            "self_attn.q_proj.weight": matrix(queries, shape.hidden),
            "self_attn.k_proj.weight": matrix(keys, shape.hidden),
            "self_attn.v_proj.weight": matrix(keys, shape.hidden),
            "self_attn.o_proj.weight": matrix(shape.hidden, queries),
            "mlp.gate_proj.weight": matrix(shape.feed_forward, shape.hidden),
            "mlp.up_proj.weight": matrix(shape.feed_forward, shape.hidden),
            "mlp.down_proj.weight": matrix(shape.hidden, shape.feed_forward),
            "input_layernorm.weight": norm(),
            "post_attention_layernorm.weight": norm(),
        }
        if shape.qkv_bias:
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                tensors[f"self_attn.{name}_proj.bias"] = torch.zeros(size).bfloat16()
        save(f"layer-{layer}.safetensors", {prefix + name: t for name, t in tensors.items()})
    config = {
        "architectures": ["Qwen2ForCausalLM" if shape.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if shape.qkv_bias else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory)
    (directory / "config.json").write_text(json.dumps(config))  # last: with it, all is there


def main() -> None:
    """Makes the checkpoint if it is not there, converts it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--bits", type=float, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--vocabulary", type=int, help="smaller than the shape's, at least 8192")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--directory", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--make-only", action="store_true")
    arguments = parser.parse_args()

    chosen = SHAPES[arguments.shape]
    layers = arguments.layers or chosen.layers
    vocabulary = arguments.vocabulary or chosen.vocabulary
    shape = Shape(**{**vars(chosen), "layers": layers, "vocabulary": vocabulary})
    checkpoint = arguments.directory / f"{arguments.shape}-{layers}-{vocabulary}"
    if not (checkpoint / "config.json").exists():
        make_checkpoint(shape, checkpoint)
    if arguments.make_only:
        return

    begin = time.perf_counter()
    ends = [begin]

    def done(report: object, count: int) -> None:
        ends.append(time.perf_counter())
        print(f"layer {len(ends) - 1} of {count}: {ends[-1] - ends[-2]:.2f} s", flush=True)

    options = Options(
        method=arguments.method,
        bits=arguments.bits,
        device=arguments.device,
        samples=arguments.samples,
        sequence_length=arguments.sequence_length,
    )
    output = arguments.directory / f"{arguments.shape}.{arguments.method}.awq.gguf"
    report = convert(str(checkpoint), output, options, force=True, events=Events(layer_done=done))
    rank = os.environ.get("RANK")
    print(
        f"{'' if rank is None else f'process {rank}: '}{time.perf_counter() - begin:.1f} s in all, "
        f"{ends[-1] - begin:.1f} s to the last layer, {report.file_bytes / 1e6:.0f} MB, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB resident"
        + (
            f", {torch.cuda.max_memory_reserved() / 1024**3:.2f} GiB of the GPU"
            if arguments.device == "cuda"
            else ""
        )
    )


if __name__ == "__main__":
    main()
