"""A chat that tells speed and power: python chat.py llama.awq.gguf. An empty line ends it."""

from __future__ import annotations

import sys
import time

from awq_edge import Model
from awq_edge.device.gpu_sensors import PowerMeter

messages: list[dict[str, str]] = []
with Model.open(sys.argv[1], gpu_layers="auto") as model:
    print(f"{model.name}, computed by: {model.session(context_length=64).kernels}")
    while said := input("\n> ").strip() if sys.stdin.isatty() else sys.stdin.readline().strip():
        messages.append({"role": "user", "content": said})
        answer, pieces, first = "", 0, 0.0
        with PowerMeter() as meter:
            for piece in model.chat(messages, max_tokens=300, seed=1):
                first = first or time.perf_counter()
                pieces += 1
                answer += piece
                print(piece, end="", flush=True)
            seconds = time.perf_counter() - first
        messages.append({"role": "assistant", "content": answer})
        rate = (pieces - 1) / seconds if pieces > 1 and seconds > 0 else 0.0
        power = meter.power()
        watts = "" if power is None else f", {power.watts:.1f} W ({power.rails})"
        print(f"\n[{rate:.1f} pieces/s{watts}]")
