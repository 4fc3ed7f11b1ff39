"""Packed models by name: where they lie, where they come from, how they arrive on a bad link."""
