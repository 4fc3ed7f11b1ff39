"""One file per model family: their configuration and tensor names in, ours out; no mathematics."""

from __future__ import annotations

from .base import Converter, Product, Slice, Stored, find, known_model_types

__all__ = ["Converter", "Product", "Slice", "Stored", "find", "known_model_types"]
