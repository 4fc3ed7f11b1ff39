"""What a workstation reads: Hugging Face checkpoints, one tensor at a time.

``open_checkpoint`` finds and checks one; the files beside this one own the kinds of files in it.
"""

from __future__ import annotations

from awq_edge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from awq_edge.checkpoints.decoder_tensors import DecoderTensors
from awq_edge.checkpoints.json_files import read_json, read_optional_json

__all__ = ["Checkpoint", "DecoderTensors", "open_checkpoint", "read_json", "read_optional_json"]
