"""``awq-edge convert``: the report, JSON, Ctrl-C, and one sentence for every failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Command

pytest.importorskip("torch")
pytest.importorskip("gguf")

EXAMPLE = ROOT / "examples/novels-7m"
QUICK = ("--samples", 2, "--sequence-length", 64)


def test_report_for_people(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "m.awq.gguf"
    result = command("convert", EXAMPLE, "-o", output, *QUICK)
    assert result.status == 0, result.err
    assert output.stat().st_size > 4_000_000
    for words in ("calibrated", "Raspberry Pi", "tokens/s", "bits per weight", str(output)):
        assert words in result.out
    assert "Traceback" not in result.err


def test_report_for_programs(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "m.awq.gguf"
    result = command(
        "convert", EXAMPLE, "-o", output, "--method", "rtn", "--bits", 2, "--json", "-q"
    )
    assert result.status == 0 and result.err == ""
    document = json.loads(result.out)
    assert document["file_bytes"] == output.stat().st_size
    # 2 bits take groups of 64 unless told otherwise: 2 + 24/64, and padding to 64 bytes.
    assert 2.375 <= document["bits_per_weight"]["linears"] < 2.6
    assert len(document["layers"]) == 8
    boards = {board["name"]: board for board in document["devices"]}
    assert boards["rpi4b"]["needed_bytes"] > document["file_bytes"]
    assert boards["rpi4b"]["fits"] and boards["rpi4b"]["roofline"] > 100


def test_parts_are_left_out(command: Command, tmp_path: Path) -> None:
    parts = ("--without", "duo", "--without", "values", "--without", "clip")
    result = command(
        "convert", EXAMPLE, "-o", tmp_path / "m", "--method", "awq", *QUICK, *parts, "--json", "-q"
    )
    assert result.status == 0, result.err
    choices = [layer["choices"] for layer in json.loads(result.out)["layers"]]
    assert {choice["kind"] for layer in choices for choice in layer.values()} == {"none", "plain"}
    assert all(layer["output"]["kind"] == "none" for layer in choices)  # 4 heads, 2 of values


def test_existing_output_needs_force(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "m.awq.gguf"
    output.write_bytes(b"precious")
    command("convert", EXAMPLE, "-o", output).assert_one_sentence("exists already", "--force")
    assert output.read_bytes() == b"precious"
    result = command("convert", EXAMPLE, "-o", output, "--method", "rtn", "--force")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/no/such/model",), "There is no directory /no/such/model"),
        ((EXAMPLE, "--bits", 9), "2, 3, 4, 5, 6 or 8"),
        ((EXAMPLE, "--group-size", 100), "32, 64 or 128"),
        ((EXAMPLE, "--method", "magic"), "magic"),
        ((EXAMPLE, "--calibration", "/no/such/text"), "/no/such/text"),
        ((EXAMPLE, "--method", "awq", "--without", "magic"), "'magic' is no part of a method"),
        ((EXAMPLE, "--without", "duo"), "The method auto has no part 'duo' at 4 bits"),
    ],
)
def test_failures(
    command: Command, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    result = command("convert", *arguments, "-o", tmp_path / "m")
    result.assert_one_sentence(words)
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_is_refused_before_the_work(
    command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    import checkpoints

    source = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "source")
    checkpoints.save_tokenizer(source)
    result = command(
        "convert", source, "-o", tmp_path / "m", "--export", "gguf", tmp_path / "x", *QUICK, "-q"
    )
    result.assert_one_sentence("no name in llama.cpp")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_what_is_kept_for_an_export_goes_with_a_conversion_that_fails(
    command: Command, tmp_path: Path
) -> None:
    """Whatever was done, the next run begins anew."""
    source = tmp_path / "source"
    shutil.copytree(EXAMPLE, source)
    weights = source / "model.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    first, last = header["model.layers.5.mlp.up_proj.weight"]["data_offsets"]
    content[start + first : start + last] = b"\xff" * (last - first)  # NaN in every 16-bit float
    weights.write_bytes(content)
    result = command(
        "convert", source, "-o", tmp_path / "m", "--export", "gguf", tmp_path / "x", *QUICK,
        "--without", "gradients", "-q",
    )  # fmt: skip
    result.assert_one_sentence("up_proj.weight", "NaN")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_interrupt_says_how_to_continue(tmp_path: Path) -> None:
    output = tmp_path / "m.awq.gguf"
    arguments = [sys.executable, "-m", "awq_edge.cli.main", "convert", str(EXAMPLE)]
    arguments += ["-o", str(output), "--samples", "32", "--sequence-length", "256"]
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb"},
    )
    manifest = tmp_path / "m.awq.gguf.partial" / "manifest.json"
    while process.poll() is None and not _layers(manifest):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues there" in error.decode()
    assert "Traceback" not in error.decode()
    assert not output.exists()
    done = len(_layers(manifest))
    resumed = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, env={**os.environ, "TERM": "dumb"}, check=True
    )
    assert f"Resuming after layer {done}" in resumed.stderr.decode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.awq.gguf"]


def _layers(manifest: Path) -> list[object]:
    try:
        layers: list[object] = json.loads(manifest.read_text())["layers"]
    except OSError:
        return []
    return layers
