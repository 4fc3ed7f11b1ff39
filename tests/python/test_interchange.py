"""Import of quantised checkpoints: weights come out bit for bit, or one sentence says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import quantised_checkpoints as made  # noqa: E402  (after the checks for torch and transformers)
from checkpoints import edit_config  # noqa: E402
from conftest import Command  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge.errors import AwqEdgeError, CheckpointError, UnsupportedError  # noqa: E402
from awq_edge.interchange.compressed_tensors import read_scheme  # noqa: E402
from awq_edge.interchange.importer import ImportReport, import_checkpoint  # noqa: E402
from awq_edge.interchange.quantised_checkpoint import open_quantised  # noqa: E402
from awq_edge.interchange.quantization_keys import (  # noqa: E402
    AUTOAWQ_HARMLESS,
    COMPRESSED_HARMLESS,
    WEIGHTS_HARMLESS,
)
from awq_edge.model_file import DequantisedModel, read_dequantised  # noqa: E402

OURS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def our_name(theirs: str) -> str:
    layer, _, part = theirs.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{OURS[part]}.weight"


def imported(directory: Path, **options: Any) -> tuple[ImportReport, DequantisedModel]:
    output = directory / "model.awq.gguf"
    report = import_checkpoint(open_quantised(str(directory)), output, **options)
    return report, read_dequantised(output)


def assert_exact(model: DequantisedModel, truth: dict[str, made.Matrix]) -> None:
    assert truth
    for theirs, matrix in truth.items():
        np.testing.assert_array_equal(model.tensors[our_name(theirs)], matrix.weights(), theirs)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gemm_comes_out_bit_equal(group_size: int, tmp_path: Path) -> None:
    truth = made.write_gemm(tmp_path, group_size)
    report, model = imported(tmp_path)
    assert len(truth) == len(report.exact) == 14
    assert_exact(model, truth)
    assert set(model.group_sizes.values()) == {group_size}


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gemv_comes_out_bit_equal(group_size: int, tmp_path: Path) -> None:
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemv",
    }
    truth = made.write(tmp_path, settings, made.gemv_tensors, group_size=group_size)
    assert_exact(imported(tmp_path)[1], truth)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 32), (8, 64), (2, 64), (3, 64)])
def test_compressed_tensors_come_out_bit_equal(
    bits: int, group_size: int, symmetric: bool, tmp_path: Path
) -> None:
    truth = made.write(
        tmp_path,
        made.compressed_settings(bits, group_size, symmetric),
        lambda name, matrix: made.packed_tensors(name, matrix, bits, symmetric),
        group_size=group_size,
        bits=bits,
        symmetric=symmetric,
    )
    assert_exact(imported(tmp_path)[1], truth)


@pytest.mark.parametrize("group_size", [0, 256, 96])
def test_other_group_sizes_are_cut_without_changing_a_weight(
    group_size: int, tmp_path: Path
) -> None:
    truth = made.write(
        tmp_path,
        made.compressed_settings(4, group_size, False),
        lambda name, matrix: made.packed_tensors(name, matrix, 4, False),
        group_size=group_size,
    )
    report, model = imported(tmp_path)
    assert_exact(model, truth)
    assert set(model.group_sizes.values()) == {{0: 128, 256: 128, 96: 32}[group_size]}
    assert report.rounded_scales == 0


def test_unpacked_zero_points_of_older_files_are_read(tmp_path: Path) -> None:
    def pack(name: str, matrix: made.Matrix) -> dict[str, np.ndarray]:
        tensors = made.packed_tensors(name, matrix, 4, False)
        tensors[f"{name}.weight_zero_point"] = (matrix.zeros - 8).astype(np.int8)
        return tensors

    truth = made.write(tmp_path, made.compressed_settings(4, 64, False), pack)
    assert_exact(imported(tmp_path)[1], truth)


def test_what_compressed_tensors_itself_packs_comes_out_bit_equal(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    def pack(name: str, matrix: made.Matrix) -> dict[str, np.ndarray]:
        signed = torch.from_numpy(matrix.codes - 8).to(torch.int8)
        zeros = torch.from_numpy(matrix.zeros - 8).to(torch.int8)
        return {
            f"{name}.weight_packed": pack_to_int32(signed, 4).numpy(),
            f"{name}.weight_scale": matrix.scales,
            f"{name}.weight_zero_point": pack_to_int32(zeros, 4, packed_dim=0).numpy(),
        }

    truth = made.write(tmp_path, made.compressed_settings(4, 64, False), pack)
    assert_exact(imported(tmp_path)[1], truth)


@pytest.mark.parametrize(
    "family", ["llama-tied", "llama-biases", "mistral-window", "qwen2", "qwen3"]
)
def test_families_and_shards(family: str, tmp_path: Path) -> None:
    truth = made.write_gemm(tmp_path, family=family, shards=3)
    model = imported(tmp_path)[1]
    assert_exact(model, truth)
    assert ("output.weight" in model.tensors) == (family not in ("llama-tied", "qwen2"))
    if family in ("llama-biases", "qwen2"):
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        bias = "model.layers.1.self_attn.q_proj.bias"
        stored = load_file(tmp_path / index[bias])[bias].float().numpy()
        np.testing.assert_array_equal(model.tensors["blk.1.attn_q.bias"], stored)


def test_pitfall_16_what_the_file_holds_decides_and_not_the_list(tmp_path: Path) -> None:
    """AutoAWQ matches names by substring: "gate" does not mean that gate_proj stayed float."""
    truth = made.write_gemm(
        tmp_path,
        settings={"modules_to_not_convert": ["gate", "self_attn"]},
        keep_float=("layers.1.mlp.down_proj",),
    )
    report, model = imported(tmp_path)
    assert_exact(model, truth)
    assert report.quantised == {
        "token_embd.weight": 8,
        "blk.1.ffn_down.weight": 8,
        "output.weight": 8,
    }
    stored = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    error = np.abs(model.tensors["blk.1.ffn_down.weight"] - stored.float().numpy())
    assert error.max() <= 0.51 * float(stored.max() - stored.min()) / 255


@pytest.mark.parametrize("bits", [4, 8])
def test_embedding_and_head_are_quantised_at_their_own_widths(bits: int, tmp_path: Path) -> None:
    from awq_edge.quantize.grouped import round_trip

    made.write_gemm(tmp_path)
    report, model = imported(tmp_path, embedding_bits=bits, head_bits=12 - bits)
    assert report.quantised == {"token_embd.weight": bits, "output.weight": 12 - bits}
    tensors = load_file(tmp_path / "model.safetensors")
    for ours, theirs in (("token_embd", "model.embed_tokens"), ("output", "lm_head")):
        expected = round_trip(
            tensors[f"{theirs}.weight"].float(), report.quantised[f"{ours}.weight"], 64
        )
        np.testing.assert_array_equal(model.tensors[f"{ours}.weight"], expected.numpy())


def test_a_quantised_head_is_taken_over(tmp_path: Path) -> None:
    made.write_gemm(tmp_path, vocabulary=104)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = made.random_matrix(*tensors.pop("lm_head.weight").shape, 64, seed=99)
    tensors.update(
        {key: torch.from_numpy(part) for key, part in made.gemm_tensors("lm_head", head).items()}
    )
    save_file(tensors, path)
    model = imported(tmp_path)[1]
    np.testing.assert_array_equal(model.tensors["output.weight"], head.weights())
    assert model.metadata["awq_edge.quantization.head_bits"] == 4


def test_scales_that_are_no_fp16_numbers_are_counted(tmp_path: Path) -> None:
    made.write_gemm(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.scales"
    tensors[name] = tensors[name].float()
    tensors[name][0, :3] *= 1.0001
    save_file(tensors, path)
    assert imported(tmp_path)[0].rounded_scales == 3


def test_early_releases_keep_their_settings_beside_config_json(tmp_path: Path) -> None:
    truth = made.write_gemm(tmp_path)
    edit_config(tmp_path, quantization_config=None)
    old = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(old))
    assert_exact(imported(tmp_path)[1], truth)


BAD_SETTINGS: dict[str, tuple[Any, str]] = {
    "another method": ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
    "no table": ("awq", "no table"),
    "three bits": ({"quant_method": "awq", "bits": 3, "group_size": 64}, "says 3 bits"),
    "no zero-points": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": False},
        "zero_point",
    ),
    "an unknown version": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv_fast"},
        "'gemv_fast'",
    ),
    "the wrong version": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"},
        "version or the group size",
    ),
    "the wrong group size": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        "version or the group size",
    ),
    "a group size that does not fit": (
        {"quant_method": "awq", "bits": 4, "group_size": 48, "version": "gemm"},
        "groups of 48 inputs",
    ),
    "a group size in words": (
        {"quant_method": "awq", "bits": 4, "group_size": "64"},
        "whole number group_size",
    ),
    "no config groups": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "config_groups",
    ),
    "quantised activations": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 8}}
            },
        },
        "activations",
    ),
    "another compressed format": (
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        },
        "nvfp4-pack-quantized",
    ),
    "the wrong compressed width": (made.compressed_settings(8, 64, False), "qweight.*not tell"),
}


# ---- keys of quantization_config -----------------------------------------------------------------

GEMM = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
# By the form of the settings; "." leads into a table.
UNKNOWN_KEYS: dict[str, tuple[str, Any, str]] = {
    "a rotation": ("awq", {"rotation": "hadamard"}, "rotation: weights are rotated"),
    "widths by module": ("awq", {"dynamic": {"x": {"bits": 8}}}, "dynamic: matrices have widths"),
    "an adapter": ("awq", {"adapter": {"rank": 8}}, "adapter"),
    "something new": ("awq", {"smoothing": 0.5}, "smoothing: what it changes is not known"),
    "something new and off": ("awq", {"smoothing": False}, "smoothing"),
    "columns out of order": ("awq", {"desc_act": True}, "out of order"),
    "words of another size": ("awq", {"pack_dtype": "int16"}, "int16"),
    "another program": ("awq", {"backend": "llm-awq"}, "llm-awq"),
    "two widths": ("awq", {"w_bit": 8}, "bits and w_bit"),
    "two forms": ("awq", {"checkpoint_format": "gemv"}, "version and checkpoint_format"),
    "rotations": (
        "ct",
        {"transform_config": {"config_groups": {"R4": {}}}},
        "transform_config: in",
    ),
    "sparse matrices": ("ct", {"sparsity_config": {"format": "sparse-bitmask"}}, "leave zeros out"),
    "not quantised yet": ("ct", {"quantization_status": "calibration"}, "not quantised yet"),
    "something new above": ("ct", {"smoothing": 0.5}, "quantization_config has the key smoothing"),
    "something new of a group": ("ct.group", {"smoothing": 1}, "group_0 has the key smoothing"),
    "outputs": ("ct.group", {"output_activations": {"num_bits": 8}}, "quantises activations"),
    "something new of weights": ("ct.weights", {"smoothing": 1}, r"weights has the key smoothing"),
    "scales made at run time": ("ct.weights", {"dynamic": True}, "dynamic True"),
    "blocks": ("ct.weights", {"block_structure": "128x128"}, "block_structure"),
}


def settings_with(form: str, change: dict[str, Any]) -> dict[str, Any]:
    if form == "awq":
        return {**GEMM, **change}
    settings = json.loads(json.dumps(made.compressed_settings(4, 64, False)))
    (group,) = settings["config_groups"].values()
    {"ct": settings, "ct.group": group, "ct.weights": group["weights"]}[form].update(change)
    return dict(settings)


@pytest.mark.parametrize("fault", UNKNOWN_KEYS)
def test_keys_that_may_change_arithmetic_are_refused(fault: str, tmp_path: Path) -> None:
    form, change, words = UNKNOWN_KEYS[fault]
    made.write_gemm(tmp_path)
    edit_config(tmp_path, quantization_config=settings_with(form, change))
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        open_quantised(str(tmp_path))
    if form == "ct":  # the older name of the same table
        edit_config(
            tmp_path, quantization_config=None, compression_config=settings_with(form, change)
        )
        with pytest.raises((CheckpointError, UnsupportedError), match=words):
            open_quantised(str(tmp_path))


def test_harmless_keys_change_nothing(tmp_path: Path) -> None:
    truth = made.write_gemm(tmp_path)
    said = dict.fromkeys(sorted(AUTOAWQ_HARMLESS), "something")
    nothing = {"transform_config": {}, "rotation": None, "smoothing": None, "dynamic": {}}
    more = {"w_bit": 4, "desc_act": False, "backend": "autoawq", "pack_dtype": "int32"}
    edit_config(tmp_path, quantization_config={**GEMM, **said, **nothing, **more})
    assert_exact(imported(tmp_path)[1], truth)

    settings = settings_with("ct", dict.fromkeys(sorted(COMPRESSED_HARMLESS), "something"))
    (group,) = settings["config_groups"].values()
    group["targets"] = ["re:.*"]
    group["weights"].update(dict.fromkeys(sorted(WEIGHTS_HARMLESS), "something"))
    settings.update(sparsity_config={"format": "dense"}, quantization_status="frozen")
    assert read_scheme(settings) == read_scheme(made.compressed_settings(4, 64, False))


def test_parts_of_a_matrix_that_are_not_known_are_refused(tmp_path: Path) -> None:
    made.write_gemm(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.R4_input.weight"] = torch.eye(4)
    save_file(tensors, path)
    with pytest.raises(UnsupportedError, match=r"down_proj has the part R4_input\.weight"):
        open_quantised(str(tmp_path))


def test_a_head_in_integers_is_not_the_embedding(tmp_path: Path) -> None:
    """Whatever tie_word_embeddings says: it was quantised as a matrix of its own."""
    made.write_gemm(tmp_path, vocabulary=104)
    edit_config(tmp_path, tie_word_embeddings=True)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    vocabulary, hidden = tensors["model.embed_tokens.weight"].shape
    tensors.pop("lm_head.weight", None)
    matrix = made.random_matrix(vocabulary, hidden, 64, 99)
    for name, part in made.gemm_tensors("lm_head", matrix).items():
        tensors[name] = torch.from_numpy(part)
    save_file(tensors, path)
    _, model = imported(tmp_path)
    np.testing.assert_array_equal(model.tensors["output.weight"], matrix.weights())


def test_queries_carry_what_multiplies_the_rotary_embedding(tmp_path: Path) -> None:
    truth = made.write_gemm(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    del config["rope_parameters"]
    config["rope_scaling"] = {**scaling, "attention_factor": 2**0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, model = imported(tmp_path)
    for theirs, matrix in truth.items():
        factor = 2.0 if "q_proj" in theirs else 1.0
        expected = matrix.weights() * np.float32(factor)
        np.testing.assert_allclose(model.tensors[our_name(theirs)], expected, rtol=1e-6)


@pytest.mark.parametrize("fault", BAD_SETTINGS)
def test_bad_settings_are_refused_and_nothing_is_left(fault: str, tmp_path: Path) -> None:
    settings, words = BAD_SETTINGS[fault]
    made.write_gemm(tmp_path)
    edit_config(tmp_path, quantization_config=settings)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((CheckpointError, UnsupportedError), match=words) as caught:
        imported(tmp_path)
    assert str(caught.value).count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before


def test_a_float_checkpoint_is_sent_to_plain_convert(tmp_path: Path) -> None:
    made.random_model("llama").save_pretrained(tmp_path, safe_serialization=True)
    with pytest.raises(CheckpointError, match="without --from-awq"):
        imported(tmp_path)


DAMAGED: dict[str, Any] = {
    "no zero-points": lambda tensors, name: tensors.pop(f"{name}.qzeros"),
    "no scales": lambda tensors, name: tensors.pop(f"{name}.scales"),
    "scales not finite": lambda tensors, name: tensors[f"{name}.scales"][1].fill_(float("nan")),
    "integers for scales": lambda tensors, name: tensors.update(
        {f"{name}.scales": tensors[f"{name}.scales"].int()}
    ),
    "floats for codes": lambda tensors, name: tensors.update(
        {f"{name}.qweight": tensors[f"{name}.qweight"].float()}
    ),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_checkpoints_are_refused_and_nothing_is_left(fault: str, tmp_path: Path) -> None:
    made.write_gemm(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    DAMAGED[fault](tensors, "model.layers.1.mlp.up_proj")
    save_file(tensors, path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AwqEdgeError, match="up_proj") as caught:
        imported(tmp_path)
    assert str(caught.value).count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_that_config_json_does_not_know_is_refused_unless_zero(
    value: float, tmp_path: Path
) -> None:
    truth = made.write_gemm(tmp_path)
    path = tmp_path / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.bias"
    save_file({**load_file(path), name: torch.full((192,), value).half()}, path)
    if value:
        with pytest.raises(CheckpointError, match=name):
            imported(tmp_path)
    else:
        assert_exact(imported(tmp_path)[1], truth)


def test_act_order_is_refused(tmp_path: Path) -> None:
    def pack(name: str, matrix: made.Matrix) -> dict[str, np.ndarray]:
        order = np.arange(matrix.codes.shape[1], dtype=np.int32)
        return {
            **made.packed_tensors(name, matrix, 4, False),
            f"{name}.weight_g_idx": order,
        }

    made.write(tmp_path, made.compressed_settings(4, 64, False), pack)
    with pytest.raises(UnsupportedError, match="act-order"):
        imported(tmp_path)


# ---- the command --------------------------------------------------------------------------------


def test_the_command_imports_and_exports_again(command: Command, tmp_path: Path) -> None:
    source, packed = tmp_path / "source", tmp_path / "model.awq.gguf"
    source.mkdir()
    truth = made.write_gemm(source)
    result = command(
        "convert", "--from-awq", source, "-o", packed, "--export", "hf-awq", tmp_path / "again",
        "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert json.loads(result.out)["exact_matrices"] == 14
    assert_exact(read_dequantised(packed), truth)
    before, after = (
        load_file(directory / "model.safetensors") for directory in (source, tmp_path / "again")
    )
    name = "model.layers.0.mlp.up_proj.qweight"
    assert torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from-awq", "{float}", "-o", "{new}"), "without --from-awq"),
        (("{quantised}", "-o", "{new}"), "--from-awq"),
        (("--from-awq", "{quantised}", "-o", "{float}/config.json"), "--force"),
        (("--from-awq", "{quantised}", "-o", "{new}/below"), "no directory"),
        (("{float}", "-o", "{new}", "--export", "onnx", "{new}2"), "no export 'onnx'"),
        (("{float}", "-o", "{new}", "--export", "gguf", "{float}"), "exists already"),
        (("{float}", "-o", "{new}", "--export", "gguf", "{new}"), "cannot both be"),
        (("{float}", "-o", "{new}", "--export", "hf-awq", "{new}2", "--bits", "3"), "--bits 4"),
        (("{float}", "-o", "{new}", "--export", "hf-awq", "{new}2", "--size", "1MB"), "--size"),
        (("--from-awq", "{quantised}", "-o", "{new}", "--bits", "3"), "--bits means nothing"),
        (("--from-awq", "{quantised}", "-o", "{new}", "--size", "4MB"), "--size means nothing"),
        (("{float}", "-o", "{new}", "--size", "4MB", "--bits", "4"), "--bits means nothing"),
        (
            ("{float}", "-o", "{new}", "--size", "4M", "--head-bits", "4"),
            "--head-bits means nothing",
        ),
        (("{float}", "-o", "{new}", "--without", "clip"), "auto has no part 'clip' at 4 bits"),
        (
            ("{float}", "-o", "{new}", "--bits", "3", "--without", "grid,scales"),
            "auto has no part 'scales' at 3 bits",
        ),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: tuple[str, ...], words: str, command: Command, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("float", "quantised", "new")}
    for name in ("float", "quantised"):
        places[name].mkdir()
    made.write_gemm(places["quantised"])
    made.random_model("llama").save_pretrained(places["float"], safe_serialization=True)
    config = (places["float"] / "config.json").read_bytes()
    result = command("convert", *(text.format(**places) for text in arguments), "--quiet")
    result.assert_one_sentence(words)
    assert (places["float"] / "config.json").read_bytes() == config
    assert not list(tmp_path.glob("new*"))
