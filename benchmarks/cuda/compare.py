"""A GPU in one run: checks, then times, then prints a table.

    python benchmarks/cuda/compare.py BUILD [SHAPE ...] [--peers eager,compiled]

BUILD: a build with -DAWQE_WITH_CUDA=ON -DAWQE_BUILD_BENCHMARKS=ON. For each shape of shapes.py (by
default TinyLlama's and Llama-2-7B's) a model of random weights is written, its logits on the GPU
are compared with the CPU's by ==, bench_cuda times it, prompts also with attention on tensor cores,
and Hugging Face transformers does the same work in FP16: with "eager" as it comes, with "compiled"
by a compiled decoding step over a static cache. Rows are printed as they come, speeds are medians
in tokens per second. Needs torch and transformers for the peers alone.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from shapes import SHAPES, architecture, write_awq_edge  # noqa: E402

from awq_edge.architecture import Architecture  # noqa: E402

PROMPT, CONTEXT, STEPS, REPETITIONS = 2048, 512, 64, 5
PEERS = ("eager", "compiled")
CHECKED = 80  # tokens: a tile, few rows and single ones

COLUMNS = ("prompt of 2048", "prompt of 2048, tensor", "1 decoding", "greedy", "8 decoding")


def check(path: Path) -> None:
    """Ends the program where the GPU's logits are not the CPU's, bit for bit."""
    from awq_edge import Model

    tokens = [i * 7 % 32000 for i in range(CHECKED)]
    logits = []
    for device in ("cpu", "cuda"):
        with (
            Model.open(path, device=device, context_length=128) as model,
            model.session() as session,
        ):
            parts = [session.logits(tokens[:70]), session.logits(tokens[70:75])]
            parts += [session.logits([token]) for token in tokens[75:]]
            logits.append(np.concatenate(parts))
    differing = int(np.count_nonzero(logits[0].view(np.uint32) != logits[1].view(np.uint32)))
    if differing:
        raise SystemExit(f"{path.name}: {differing} of {logits[0].size} logits differ.")


def ours(bench: Path, path: Path) -> dict[str, float]:
    """What bench_cuda measures."""
    run = subprocess.run([bench, path], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr.strip())
    found = re.findall(
        r": (prompt of \d+(?:, tensor)?|\d decoding|greedy)[^\n]*?: ([\d.]+) tokens/s", run.stdout
    )
    return {what: float(speed) for what, speed in found}


def median_seconds(work: Callable[[], None]) -> float:
    """Of some repetitions, each to its end on the GPU, after two untimed ones."""
    import torch

    seconds = []
    for _ in range(REPETITIONS + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def transformers(shape: Architecture, compiled: bool) -> dict[str, float]:
    """Hugging Face's Llama of this shape in FP16: a prompt, and one sequence that decodes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.feed_forward_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary_size,
        tie_word_embeddings=shape.tied_head,
        max_position_embeddings=4096,
    )
    torch.set_default_dtype(torch.float16)
    speeds = {}
    with torch.device("cuda"), torch.no_grad():
        model = LlamaForCausalLM(config).eval()
        prompt = torch.arange(PROMPT).reshape(1, -1) % shape.vocabulary_size
        if not compiled:
            seconds = median_seconds(lambda: model(prompt, logits_to_keep=1))
            speeds[COLUMNS[0]] = PROMPT / seconds
        cache = StaticCache(config=config, max_cache_len=CONTEXT + STEPS * (REPETITIONS + 3))
        takes = inspect.signature(LlamaForCausalLM.forward).parameters  # names of the release
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True) if compiled else model

        def read(how: Callable[..., object], tokens: torch.Tensor, held: int) -> None:
            positions = torch.arange(held, held + tokens.shape[1])
            given = {"cache" if "cache" in takes else "past_key_values": cache}
            if "cache_position" in takes:
                given["cache_position"] = positions
            how(tokens, position_ids=positions[None], logits_to_keep=1, **given)

        read(model, prompt[:, :CONTEXT], 0)
        held = CONTEXT
        token = prompt[:, :1].clone()

        def decode() -> None:
            nonlocal held
            for _ in range(STEPS):
                read(step, token, held)
                held += 1

        speeds["1 decoding"] = STEPS / median_seconds(decode)
    return speeds


def main() -> None:
    """Checks, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("shapes", nargs="*", default=["tinyllama-1.1b", "llama-2-7b"])
    parser.add_argument("--peers", default="eager,compiled")
    arguments = parser.parse_args()
    for name in arguments.shapes:
        if name not in SHAPES:
            raise SystemExit(f"There is no shape {name}: there are {', '.join(SHAPES)}.")
    for peer in filter(None, arguments.peers.split(",")):
        if peer not in PEERS:
            raise SystemExit(f"There is no peer {peer}: there are {', '.join(PEERS)}.")
    os.environ["AWQ_EDGE_LIBRARY"] = str(arguments.build / "libawq_edge.so")
    print(f"{'tokens per second':44s}" + "".join(f"{column:>24s}" for column in COLUMNS))

    def show(engine: str, speeds: dict[str, float]) -> None:
        cells = (f"{speeds[c]:24.0f}" if c in speeds else f"{'-':>24s}" for c in COLUMNS)
        print(f"{name + ', ' + engine:44s}" + "".join(cells), flush=True)

    for name in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.awq.gguf"
            write_awq_edge(architecture(name), path)
            check(path)
            show("awq-edge (the CPU's bits)", ours(arguments.build / "bench_cuda", path))
        for peer in filter(None, arguments.peers.split(",")):
            show(f"transformers {peer}", transformers(architecture(name), peer == "compiled"))


if __name__ == "__main__":
    main()
