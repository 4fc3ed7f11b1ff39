"""Time and memory of a conversion: random weights of a named shape, the shipped calibration text.

    python benchmarks/conversion.py llama-2-7b --device cuda
    python benchmarks/conversion.py falcon-7b --layers 1 --vocabulary 8192

Owns the making of the checkpoint (by transformers' class of the family, in a process of its own)
and the measuring. Time and memory do not depend on what the weights are. Prints the seconds of
every layer, the peak of resident memory and of a GPU's memory. Under ``torchrun`` every process
reports for itself; make the checkpoint before, with --make-only.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from shapes import CONTEXT, SHAPES, config

from awq_edge.conversion import Events, Options, convert

TOKENIZER = Path(__file__).parent.parent / "examples" / "novels-7m"
# Peaks of activations differ widely between channels in real models: norms that do, too.
NORM_SPREAD = 0.5
# What families call their sizes.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def make_checkpoint(
    shape: str, layers: int | None, vocabulary: int | None, directory: Path
) -> None:
    """Writes a checkpoint in bfloat16 as transformers does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    described = config(shape)
    made = AutoConfig.for_model(described.pop("model_type"), **described)
    for name in LAYERS:
        if layers and hasattr(made, name):
            setattr(made, name, layers)
            if getattr(made, "layer_types", None):
                made.layer_types = made.layer_types[:layers]
            break
    if vocabulary:
        made.vocab_size = vocabulary
    for name in POSITIONS:
        if hasattr(made, name):
            setattr(made, name, min(getattr(made, name), CONTEXT))
            break
    made.bos_token_id, made.eos_token_id, made.pad_token_id = 1, 2, None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(0, 0.7 / weight.shape[1] ** 0.5)
            elif weight.dim() == 1 and name.endswith("weight"):
                weight.copy_((1 + NORM_SPREAD * torch.randn_like(weight)).abs())
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory)
    model.save_pretrained(directory / "making", max_shard_size="1GB")
    # config.json last: with it, all is there.
    for file in sorted((directory / "making").iterdir(), key=lambda f: f.name == "config.json"):
        file.rename(directory / file.name)
    (directory / "making").rmdir()


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

    parts = [arguments.shape, arguments.layers, arguments.vocabulary]
    checkpoint = arguments.directory / "-".join(str(part) for part in parts if part)
    if arguments.make_only:
        make_checkpoint(arguments.shape, arguments.layers, arguments.vocabulary, checkpoint)
        return
    if not (checkpoint / "config.json").exists():
        # Elsewhere: what the making takes is not what the conversion takes.
        subprocess.run([sys.executable, *sys.argv, "--make-only"], check=True)

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
