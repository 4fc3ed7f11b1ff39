"""Whole conversions: content, accuracy, resuming, and what bad input leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import layouts, model_file, stages, torch_decoder  # noqa: E402
from awq_edge.conversion import Events, Options, Report, convert  # noqa: E402
from awq_edge.conversion.work_directory import WorkDirectory  # noqa: E402
from awq_edge.errors import (  # noqa: E402
    AwqEdgeError,
    CheckpointError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.quantize import coupling, pivots  # noqa: E402

QUICK = dict(samples=6, sequence_length=24, group_size=32)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random checkpoint with a tokenizer of single characters."""

    def make(family: str = "llama", **options: Any) -> Path:
        directory = tmp_path / "checkpoint"
        checkpoints.save(checkpoints.random_model(family), directory, **options)
        vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
        vocabulary |= {chr(code): code - 29 for code in range(32, 127)}
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
        )
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return directory

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 20)
    return path


def names_beside(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()} - {"checkpoint", "calibration.txt"}


@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-biases", "qwen2", "qwen3"])
@pytest.mark.parametrize("method", ["awq", "rtn"])
def test_file_computes_what_the_checkpoint_does(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path, family: str, method: str
) -> None:
    source = checkpoint(family)
    output = tmp_path / "m.awq.gguf"
    options = Options(method=method, bits=8, calibration=text, **QUICK)
    report = convert(str(source), output, options)
    assert names_beside(output) == {"m.awq.gguf"}
    assert report.file_bytes == output.stat().st_size

    floats = open_float_model(str(source))
    packed = model_file.read_dequantised(output)
    stored_epsilon = float(np.float32(floats.architecture.norm_epsilon))  # an f32 in the file
    assert packed.architecture == dataclasses.replace(
        floats.architecture, norm_epsilon=stored_epsilon
    )
    expected_names = set(floats.tensor_names())
    assert set(packed.tensors) == expected_names
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}
    tokens = torch.arange(3, 60).reshape(1, -1)
    exact = torch_decoder.logits(floats, floats.architecture, tokens)
    ours = torch_decoder.logits(tensors.__getitem__, packed.architecture, tokens)
    # 8 bits cost each matrix 0.5 %; a misplaced tensor would cost everything.
    assert float((ours - exact).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize("bits", layouts.BITS)
def test_bits_and_metadata(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path, bits: int
) -> None:
    output = tmp_path / "m.awq.gguf"
    options = Options(method="awq", bits=bits, head_bits=4, calibration=text, **QUICK)
    report = convert(str(checkpoint()), output, options)
    packed = model_file.read_dequantised(output)
    assert packed.metadata["awq_edge.quantization.method"] == "awq"
    assert packed.metadata["awq_edge.quantization.bits"] == bits
    assert packed.metadata["awq_edge.quantization.head_bits"] == 4
    assert packed.metadata["awq_edge.quantization.embedding_bits"] == (8 if bits == 8 else 6)
    assert len(packed.metadata["awq_edge.quantization.calibration_sha256"]) == 64
    assert packed.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert packed.metadata["tokenizer.ggml.add_bos_token"] is True
    assert packed.metadata["awq_edge.tokenizer.eos_token_ids"] == [2]
    assert len(np.unique(packed.tensors["blk.0.ffn_up.weight"][0, :32])) <= 2**bits
    assert len(np.unique(packed.tensors["output.weight"][0, :32])) <= 16
    for layer in report.layers:
        assert layer.error is not None and layer.error_rtn is not None
        assert layer.error < layer.error_rtn * 1.1
    linear_bytes = sum(
        layouts.Layout(*values.shape, bits, 32).total_bytes
        for name, values in packed.tensors.items()
        if name.startswith("blk.") and values.ndim == 2
    )
    weights = packed.architecture.linear_parameters()
    assert report.linear_bits_per_weight == pytest.approx(8 * linear_bytes / weights)


def test_awq_beats_rtn_where_activations_are_uneven(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source = str(checkpoint())
    options = Options(method="awq", bits=3, calibration=text, **QUICK)
    report = convert(source, tmp_path / "m", options)
    errors = [(layer.error, layer.error_rtn) for layer in report.layers]
    assert sum(after for after, _ in errors if after) < 0.95 * sum(
        before for _, before in errors if before
    )


def test_tied_matrix_is_stored_once_with_the_larger_bits(
    tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    output = tmp_path / "m"
    options = Options(method="rtn", embedding_bits=4, head_bits=8, group_size=32)
    report = convert(str(checkpoint("llama-tied")), output, options)
    packed = model_file.read_dequantised(output)
    assert "output.weight" not in packed.tensors
    assert len(np.unique(packed.tensors["token_embd.weight"][5, :32])) > 16
    assert packed.metadata["awq_edge.quantization.embedding_bits"] == 8
    embedding = layouts.Layout(101, 48, 8, 32).total_bytes
    assert report.decode_bytes > embedding  # the head is read for every token


def test_same_options_give_the_same_file(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source = str(checkpoint())
    options = Options(calibration=text, **QUICK)
    convert(source, tmp_path / "a", options)
    convert(source, tmp_path / "b", options)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def interrupted(source: str, output: Path, options: Options, layers: int) -> None:
    """A conversion that ends with Ctrl-C after some layers."""

    def stop(report: object, total: int) -> None:
        nonlocal layers
        layers -= 1
        if layers == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, output, options, events=Events(layer_done=stop))


@pytest.mark.parametrize("method", ["auto", "awq", "rtn"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_interrupted_conversion_resumes_to_the_same_file(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path, method: str, layers: int
) -> None:
    source = str(checkpoint())
    options = Options(method=method, calibration=text, **QUICK)
    convert(source, tmp_path / "whole", options)
    output = tmp_path / "resumed"
    interrupted(source, output, options, layers)
    assert names_beside(output) == {"whole", "resumed.partial"}
    messages: list[str] = []
    done: list[int] = []
    report = convert(
        source,
        output,
        options,
        events=Events(messages.append, layer_done=lambda layer, _: done.append(layer.layer)),
    )
    assert messages == [f"Resuming after layer {layers} of an interrupted conversion."]
    assert done == [0, 1, 2]
    assert [layer.layer for layer in report.layers] == [0, 1, 2]
    assert names_beside(output) == {"whole", "resumed"}
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_interrupt_while_the_file_is_written_keeps_the_layers(
    tmp_path: Path,
    checkpoint: Callable[..., Path],
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    source, options = str(checkpoint()), Options(method="rtn", calibration=text, **QUICK)
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        patch.setattr("awq_edge.model_file.write_unnamed", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, options)
    assert names_beside(output) == {"output.partial"}
    messages: list[str] = []
    convert(source, output, options, events=Events(messages.append))
    assert messages == ["Resuming after layer 3 of an interrupted conversion."]
    assert names_beside(output) == {"output"}


def test_an_interrupt_in_the_first_layer_keeps_what_gradients_told(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    def stop(layer: int, weights: object) -> None:
        raise KeyboardInterrupt

    source, options = str(checkpoint()), Options(calibration=text, **QUICK)
    convert(source, tmp_path / "whole", options)
    output = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        convert(source, output, options, events=Events(layer_scaled=stop))
    assert names_beside(output) == {"whole", "resumed.partial"}
    messages: list[str] = []
    notes: list[str] = []
    convert(source, output, options, events=Events(messages.append, note=notes.append))
    assert messages == ["Resuming at the first layer of an interrupted conversion."]
    assert not notes  # the gradients were not measured again
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()


def test_outputs_are_weighed_by_their_own_gradients(
    tmp_path: Path,
    checkpoint: Callable[..., Path],
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With moments that are scaled where scales were folded into its rows."""
    stored: dict[tuple[int, str], torch.Tensor] = {}
    divided: list[dict[str, torch.Tensor]] = []
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    store, search, quantise = (
        WorkDirectory.store_moments,
        pivots.search_and_fold,
        coupling.quantise,
    )

    def storing(self: WorkDirectory, layer: int, moments: dict[str, torch.Tensor]) -> None:
        stored.update({(layer, name): tensor for name, tensor in moments.items()})
        store(self, layer, moments)

    def searching(*arguments: Any) -> Any:
        choices, factors = search(*arguments)
        divided.append(factors)
        return choices, factors

    def quantising(weights: Any, hessian: Any, moments: Any, *rest: Any) -> Any:
        seen.extend(zip(weights, moments))
        return quantise(weights, hessian, moments, *rest)

    monkeypatch.setattr(WorkDirectory, "store_moments", storing)
    monkeypatch.setattr(pivots, "search_and_fold", searching)
    monkeypatch.setattr(coupling, "quantise", quantising)
    directory = checkpoint()
    # Matrices of several widths are not rounded in their order.
    options = Options(calibration=text, without=("widths",), **QUICK)
    convert(str(directory), tmp_path / "m", options)
    architecture = open_float_model(str(directory)).architecture
    layers = architecture.layers
    assert len(stored) == len(seen) == 7 * layers
    assert len(divided) == layers
    assert any(not bool((factors == 1).all()) for layer in divided for factors in layer.values())
    matrices = [(n, name) for n in range(layers) for name in stages.matrices(architecture, n)]
    for (weight, moments), (layer, name) in zip(seen, matrices):
        wanted = stored[layer, name][0]
        assert len(wanted) == len(weight)
        if name in divided[layer]:
            wanted = divided[layer][name][:, None] * wanted * divided[layer][name]
        torch.testing.assert_close(moments[0], wanted)


def test_less_text_than_asked_for_is_told(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    messages: list[str] = []
    options = dict(QUICK, samples=1000, sequence_length=40)
    convert(
        str(checkpoint()),
        tmp_path / "m",
        Options(method="gptq", calibration=text, **options),
        events=Events(messages.append),
    )
    # 62 letters, 20 times, in blocks of 39 and BOS.
    assert [message.split(":")[0] for message in messages] == [
        "Calibrating on 31 blocks of 40 tokens"
    ]


def test_damaged_weights_are_named(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    directory = checkpoint()
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = 3e8
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"blk\.1\.attn_v\.weight.*reach"):
        convert(str(directory), tmp_path / "m", Options(calibration=text, **QUICK))
    assert names_beside(tmp_path / "m") == set()


def test_an_interrupt_before_the_first_layer_is_done_leaves_nothing(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    def stop(layer: int, weights: object) -> None:
        raise KeyboardInterrupt

    options = Options(method="awq", calibration=text, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        convert(str(checkpoint()), tmp_path / "output", options, events=Events(layer_scaled=stop))
    assert names_beside(tmp_path / "output") == set()


def test_other_options_do_not_resume(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source, output = str(checkpoint()), tmp_path / "m"
    interrupted(source, output, Options(calibration=text, **QUICK), 1)
    messages: list[str] = []
    options = Options(bits=3, calibration=text, **QUICK)
    convert(source, output, options, events=Events(messages.append))
    assert messages[0] == "An interrupted conversion was another one: starting anew."
    convert(source, tmp_path / "fresh", options)
    assert output.read_bytes() == (tmp_path / "fresh").read_bytes()


def test_changed_text_does_not_resume(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source, output, options = str(checkpoint()), tmp_path / "m", Options(calibration=text, **QUICK)
    interrupted(source, output, options, 1)
    text.write_text(text.read_text()[::-1])
    messages: list[str] = []
    convert(source, output, options, events=Events(messages.append))
    assert messages[0] == "An interrupted conversion was another one: starting anew."


def test_foreign_directory_is_not_cleared(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(FileUnreadableError, match=r"m\.partial is in the way"):
        convert(str(checkpoint()), tmp_path / "m", Options(method="rtn"))
    assert (tmp_path / "m.partial" / "thesis.txt").exists()


def refused(
    source: Path, output: Path, error: type[AwqEdgeError], words: str, **options: Any
) -> None:
    """The conversion fails with one sentence and leaves nothing behind."""
    before = names_beside(output)
    with pytest.raises(error, match=words) as caught:
        convert(str(source), output, Options(**{"method": "rtn", "group_size": 32, **options}))
    assert "\n" not in str(caught.value)
    assert names_beside(output) == before


def test_nan_weights_of_a_late_layer_leave_nothing(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, source / "model.safetensors")
    words = r"model\.layers\.2\.mlp\.up_proj\.weight .* NaN"
    refused(source, tmp_path / "m", CheckpointError, words)
    refused(source, tmp_path / "m", CheckpointError, words, method="awq", calibration=text)


def test_weights_too_large_name_the_matrix(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:] = 3e6
    save_file(tensors, source / "model.safetensors")
    refused(source, tmp_path / "m", UnsupportedError, r"blk\.1\.ffn_down\.weight reach 3e\+06")


def test_unusable_outputs_are_refused_before_any_work(
    tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    nowhere = Path("/no/such/checkpoint")  # never reached
    (tmp_path / "m").write_bytes(b"precious")
    refused(nowhere, tmp_path / "m", InvalidArgumentError, "exists already.*--force")
    assert (tmp_path / "m").read_bytes() == b"precious"
    with pytest.raises(FileUnreadableError, match="There is no directory"):
        convert(str(nowhere), tmp_path / "missing" / "m", Options())
    with pytest.raises(InvalidArgumentError, match="is a directory"):
        convert(str(nowhere), tmp_path, Options())
    report = convert(str(checkpoint()), tmp_path / "m", Options(method="rtn"), force=True)
    assert isinstance(report, Report)
    assert (tmp_path / "m").read_bytes()[:4] == b"GGUF"


def test_unwritable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is unwritable: the refusal of the operating system is played."""

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    words = "Cannot write into the directory .*: Permission denied"
    refused(Path("/no/such/checkpoint"), tmp_path / "m", FileUnreadableError, words)


def test_full_disk(
    tmp_path: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("numpy.save", "os.fsync", "pathlib.Path.mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            refused(source, tmp_path / "m", FileUnreadableError, "disk that holds .*m is full")

    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    refused(source, tmp_path / "m", FileUnreadableError, r"needs [1-9].* [kM]B, 1\.0 kB are free\.")


def test_calibration_that_cannot_work(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source, output = checkpoint(), tmp_path / "m"
    refused(
        source, output, FileUnreadableError, "calibration text", method="awq", calibration=output
    )
    text.write_bytes(b"\xff\xfe")
    refused(source, output, InvalidArgumentError, "not UTF-8", method="awq", calibration=text)
    text.write_text("")
    refused(source, output, InvalidArgumentError, "gives 0 tokens", method="awq", calibration=text)
    (source / "tokenizer.json").unlink()
    refused(source, output, CheckpointError, "--method rtn", method="awq", calibration=text)


def test_text_shorter_than_a_block_is_refused(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source, output = checkpoint(), tmp_path / "m"
    text.write_text("Only a few words.")
    words = r"gives \d+ tokens and one block needs 63: use a longer text"
    refused(
        source,
        output,
        InvalidArgumentError,
        words,
        method="awq",
        calibration=text,
        sequence_length=64,
    )
    convert(
        str(source), output, Options(calibration=text, group_size=32, sequence_length=3, samples=1)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(method="gguf"), "is none of .*awq"),
        (dict(bits=9), "2, 3, 4, 5, 6 or 8"),
        (dict(head_bits=16), "2, 3, 4, 5, 6 or 8"),
        (dict(group_size=16), "32, 64 or 128"),
        (dict(samples=0), "at least 1 sample"),
    ],
)
def test_options_that_can_never_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Options(**options)


def test_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    nowhere = Path("/no/such/checkpoint")
    refused(nowhere, tmp_path / "m", UnsupportedError, "no CUDA device", device="cuda")
    refused(nowhere, tmp_path / "m", InvalidArgumentError, "none of cpu, cuda", device="tpu")


def test_shipped_text_calibrates_by_default(
    tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    options = Options(**{**QUICK, "samples": 2})
    report = convert(str(checkpoint()), tmp_path / "m", options)
    assert all(layer.error is not None for layer in report.layers)


def test_real_checkpoint_whose_rows_divide_nothing(tmp_path: Path) -> None:
    """stories260k: rows of 64 and 172 inputs, heads of 8."""
    source = checkpoints.assets("models", "stories260k")
    options = Options(method="awq", samples=4, sequence_length=128)
    report = convert(str(source), tmp_path / "m", options)
    assert sum(layer.error or 0 for layer in report.layers) < 0.95 * sum(
        layer.error_rtn or 0 for layer in report.layers
    )
