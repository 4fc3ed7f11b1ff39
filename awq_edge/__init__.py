"""awq-edge: AWQ-quantised language models on ARM boards, Jetsons and PCs.

Owns the public names. Importing it loads no tokenizer, no command line and no torch.
"""

from __future__ import annotations

__version__ = "0.1.0"
