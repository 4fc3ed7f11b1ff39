"""Shapes of models that see pictures, as the benchmarks write them: their work and their memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
from recorded_boards import lay_out, record

from awq_edge import Model
from awq_edge.device import doctor
from awq_edge.device.board import read_board

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from vision_shapes import (  # noqa: E402  (their folder)
    CONFIGS,
    SIDE,
    architectures,
    attention_products,
    linear_products,
    write_seeing,
)

# Billions of multiply-adds and millions of weights, as they follow from published sizes.
KNOWN = {"smolvlm-256m": (88, 19, 93), "qwen3-vl-2b": (336, 52, 404)}


@pytest.mark.parametrize("shape", CONFIGS)
def test_shapes_have_the_work_of_the_published_models(shape):
    _, tower = architectures(shape)
    counted = linear_products(tower) / 1e9, attention_products(tower) / 1e9
    assert [round(one) for one in counted] == list(KNOWN[shape][:2])
    assert abs(tower.linear_parameters() / 1e6 - KNOWN[shape][2]) < 1


def own_memory():
    """Bytes of this process in memory that are no file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return int(told["RssAnon"].split()[0]) << 10


def test_a_raspberry_pi_of_2_gb_runs_smolvlm_256m(tmp_path):
    """By what it says is free, with the whole context; and what the tower takes is not kept."""
    path = tmp_path / "model.awq.gguf"
    write_seeing("smolvlm-256m", path)
    board = read_board(lay_out(record("raspberry-pi-4b-2gb"), tmp_path / "board"))
    with Model.open(path, threads=1) as model:
        result = doctor.fit(model, board, model.info.context_length)
        assert result.largest_context == model.info.context_length
        assert 8e6 < result.encoding_bytes < 10e6
        told = doctor.judge_fit(result, "smolvlm-256m")
        assert told.level == doctor.OK
        assert "beside 8." in told.text and "for encoding a picture" in told.text

        tile, seen = np.zeros((1, SIDE, SIDE, 3), np.uint8), []
        found = np.ones((1, 64, 576), np.float32)
        before = own_memory()
        model.native.encode_pictures(tile, found, 1, lambda *_: seen.append(own_memory()))
        behind = own_memory()
    assert max(seen) - before > 0.8 * result.encoding_bytes
    assert behind - before < 0.2 * result.encoding_bytes
