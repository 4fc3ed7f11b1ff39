"""Generates text from a packed file, piece by piece, then looks at the logits themselves.

    python examples/02_generate.py model.awq.gguf "Once upon a time"

Runs on a device: needs no torch.
"""

from __future__ import annotations

import sys

from awq_edge import Model

path, prompt = sys.argv[1:3]

with Model.open(path) as model:
    # Pieces come as they are computed. Equal seeds give equal texts on every machine.
    generation = model.generate(prompt, max_tokens=60, temperature=0.7, seed=1)
    print(prompt, end="")
    for piece in generation:
        print(piece, end="", flush=True)
    print(f"\n\n{len(generation.tokens)} tokens, ended by: {generation.stop_reason}")

    # What the model thinks comes next: float32 [tokens, vocabulary].
    logits = model.logits(model.tokenize(prompt))[-1]
    likeliest = logits.argsort()[::-1][:5]
    print("likeliest next:", [model.detokenize([int(token)]) for token in likeliest])
