"""awq-edge: AWQ-quantised language models on ARM boards, Jetsons and PCs.

Owns the public names. Importing it loads no tokenizer, no command line and no torch.
"""

from __future__ import annotations

from awq_edge.errors import AwqEdgeError
from awq_edge.generation import Generation, GenerationConfig
from awq_edge.model import Model
from awq_edge.session import Session

__all__ = ["AwqEdgeError", "Generation", "GenerationConfig", "Model", "Session", "__version__"]

__version__ = "0.1.0"
