"""awq-edge: AWQ-quantised language models on ARM boards, Jetsons and PCs.

Owns the public names. Importing it loads none of them before it is asked for: the command line
passes through here before it can answer Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awq_edge.errors import AwqEdgeError
    from awq_edge.generation import Generation, GenerationConfig
    from awq_edge.model import Model
    from awq_edge.session import Session
    from awq_edge.unreadable_files import exit_on_unreadable_file

__all__ = [
    "AwqEdgeError",
    "Generation",
    "GenerationConfig",
    "Model",
    "Session",
    "__version__",
    "exit_on_unreadable_file",
]

__version__ = "0.1.0"

_MODULES = {
    "AwqEdgeError": "errors",
    "Generation": "generation",
    "GenerationConfig": "generation",
    "Model": "model",
    "Session": "session",
    "exit_on_unreadable_file": "unreadable_files",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
