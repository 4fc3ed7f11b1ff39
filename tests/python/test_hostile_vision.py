"""Checkpoints that see pictures with one thing wrong each: a few of hostile_vision.py's."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hostile_vision import KINDS, hostile


def test_hostile_checkpoints_are_refused_or_run(tmp_path, monkeypatch):
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path))
    counts, faults = hostile(2 * len(KINDS), 7 * len(KINDS), ("smolvlm", "a resampler"))
    assert not faults
    assert counts["refused"] > 5 and counts["written"] > 3, counts
