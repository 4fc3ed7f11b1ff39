"""Checkpoints that see pictures with one thing wrong each: a few of hostile_vision.py's."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hostile_vision import KINDS, hostile, make_family, tables

from awq_edge.errors import AwqEdgeError
from awq_edge.float_model import open_float_model, open_vision_part


def test_hostile_checkpoints_are_refused_or_run(tmp_path, monkeypatch):
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path))
    counts, faults = hostile(2 * len(KINDS), 7 * len(KINDS), ("smolvlm", "a resampler"))
    assert not faults
    assert counts["refused"] > 5 and counts["written"] > 3, counts


@pytest.mark.parametrize(
    "family", ["llava", "qwen2_5_vl", "a resampler", "vila", "nvila", "nanovlm", "flamingo mpt"]
)
def test_no_key_of_a_side_file_may_hold_what_it_likes(family, tmp_path):
    """One after the other becomes a list, a table and half a number: opened, or a sentence."""
    folder = tmp_path / "model"
    make_family(family, folder)
    refused = 0
    for path in sorted(folder.rglob("*config.json")):
        before = path.read_text(encoding="utf-8")
        document = json.loads(before)
        for table in list(tables(document)):
            for key, held in list(table.items()):
                for value in ([1], {"a": 1}, 0.5):
                    table[key] = value
                    path.write_text(json.dumps(document), encoding="utf-8")
                    try:
                        open_vision_part(open_float_model(str(folder)))
                    except AwqEdgeError as error:
                        assert "\n" not in str(error), (path, key, value)
                        refused += 1
                table[key] = held
        path.write_text(before, encoding="utf-8")
    assert refused > 30
