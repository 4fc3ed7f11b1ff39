"""Converts a Hugging Face model directory with AWQ and tells how large the file became.

    python examples/01_convert.py examples/novels-7m model.awq.gguf

Needs the extra [convert] (pip install 'awq-edge[convert]'); runs on a workstation.
"""

from __future__ import annotations

import subprocess
import sys

from awq_edge import Model

source, target = sys.argv[1:3]
options = sys.argv[3:]  # for example --bits 3 --group-size 64

# The command and the library are the same program; a script may call either.
subprocess.run(["awq-edge", "convert", source, "-o", target, *options], check=True)

with Model.open(target) as model:
    print(f"{model.name}: {model.info.parameters:,} weights in {model.info.file_bytes:,} bytes")
    print(f"needs {model.memory().total_bytes / 1e6:.0f} MB for {model.context_length} tokens")
