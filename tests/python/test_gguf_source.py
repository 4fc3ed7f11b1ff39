"""GGUF files as a source: the same weights, logits and codes as the Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import checkpoints  # noqa: E402
import gguf_files  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.stages import tensor_names  # noqa: E402

TOKENS = torch.arange(40).reshape(1, 40) * 7 % 101
FAMILIES = [
    "llama",
    "llama-tied",
    "llama-biases",
    "llama-llama3-rope",
    "llama-linear-rope",
    "llama-wide-heads",
    "llama-one-kv-head",
    "mistral-no-window",
    "qwen2",
    "qwen3",
    "qwen3-biases",
    "phi3",
    "phi3-partial-longrope",
    "granite-tied",
    "granite-biases",
    "ernie4_5",
    "glm",
    "gemma",
]
WRITABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# Types that the package reads and does not write: blocks of random bytes.
READABLE = [
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "MXFP4",
]  # fmt: skip


def saved(family: str, directory: Path, **sizes: Any) -> Path:
    model = checkpoints.random_model(family, **sizes)
    if family == "gemma":  # a file holds its norms plus one: exact for numbers of 16 bits
        model = model.to(torch.bfloat16)
    return checkpoints.save(model, directory)


def class_of(family: str) -> str:
    return checkpoints.FAMILIES[family][0]


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = open_float_model(str(one)), open_float_model(str(other))
    assert a.architecture == b.architecture
    for name in tensor_names(a.architecture):
        assert torch.equal(a(name), b(name)), name


def rewritten(directory: Path, target: Path, floats: dict[str, np.ndarray], model: str) -> Path:
    """The directory once more, with the weights of a GGUF file under llama.cpp's names."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    target.mkdir()
    config = json.loads((directory / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config))
    architecture, permuted = gguf_files.ARCHITECTURES[model]
    names = get_tensor_name_map(MODEL_ARCH[architecture], config["num_hidden_layers"])
    kept = {}
    for name in load_file(directory / "model.safetensors"):
        stem, _, kind = name.rpartition(".")
        values = floats[f"{names.get_name(stem)}.{kind}"]
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(
            stem.rpartition(".")[2]
        )
        if permuted and heads:
            n = config[heads]
            pairs = values.reshape(n, values.shape[0] // n // 2, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        kept[name] = np.ascontiguousarray(values, dtype=np.float32)
    save_file(kept, target / "model.safetensors")
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_the_directory_that_it_was_made_of(family: str, tmp_path: Path) -> None:
    directory = saved(family, tmp_path / "hf")
    path = gguf_files.write(tmp_path / "m.gguf", directory, class_of(family))
    assert_same_weights(path, directory)
    one, other = (open_float_model(str(place)) for place in (path, directory))
    assert torch.equal(
        torch_decoder.logits(one, one.architecture, TOKENS),
        torch_decoder.logits(other, other.architecture, TOKENS),
    )


@pytest.mark.parametrize("kind", WRITABLE)
def test_weights_of_every_type_that_the_package_writes(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    directory = saved("llama", tmp_path / "hf", hidden_size=96, intermediate_size=64)
    path = gguf_files.write(tmp_path / "m.gguf", directory, "Llama", kind=kind)
    floats = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(path).tensors
    }
    same = rewritten(directory, tmp_path / "same", floats, "Llama")
    assert_same_weights(path, same)
    caution = open_float_model(str(path)).checkpoint.caution
    if kind in ("F32", "F16", "BF16", "Q8_0"):
        assert caution is None
    else:
        assert caution is not None and kind in caution and "better" in caution


@pytest.mark.parametrize("kind", READABLE)
def test_weights_of_every_type_that_the_package_only_reads(kind: str, tmp_path: Path) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    sizes = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=32)
    directory = saved(
        "llama", tmp_path / "hf", num_attention_heads=8, num_key_value_heads=2, **sizes
    )
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(3)
    floats: dict[str, np.ndarray] = {}

    def change(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        for name, values in list(tensors.items()):
            floats[name] = values
            if values.ndim != 2:
                continue
            raw = np.empty((values.size // block, block_bytes), np.uint8)
            left = np.arange(len(raw))
            while len(left):  # a scale of random bytes may be no number
                raw[left] = random.integers(0, 256, (len(left), block_bytes))
                with np.errstate(all="ignore"):
                    made = dequantize(raw[left], GGMLQuantizationType[kind])
                left = left[~np.isfinite(made.reshape(len(left), -1)).all(axis=1)]
            raw = raw.reshape(len(values), -1)
            floats[name] = dequantize(raw, GGMLQuantizationType[kind]).reshape(values.shape)
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
            del tensors[name]

    path = gguf_files.write(tmp_path / "m.gguf", directory, "Llama", change=change)
    same = rewritten(directory, tmp_path / "same", floats, "Llama")
    assert_same_weights(path, same)
    model = open_float_model(str(path))
    numbers = torch.tensor([[0, 5], [100, 7]])
    embedding = model("token_embd.weight")
    assert torch.equal(model.rows("token_embd.weight", numbers), embedding[numbers])


def test_a_fused_matrix_where_the_family_has_three(tmp_path: Path) -> None:
    """ChatGLM's own files hold queries, keys and values in one."""
    directory = saved("glm", tmp_path / "hf")

    def change(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        for layer in range(3):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)

    path = gguf_files.write(tmp_path / "m.gguf", directory, "Glm", change=change)
    assert_same_weights(path, directory)


def test_factors_of_no_known_scaling_stay_a_table(tmp_path: Path) -> None:
    directory = saved("llama", tmp_path / "hf")
    factors = np.array([1.0, 1.5, 1.25, 7.0], np.float32)

    def change(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        tensors["rope_freqs.weight"] = factors

    path = gguf_files.write(tmp_path / "m.gguf", directory, "Llama", change=change)
    plain = open_float_model(str(directory)).architecture.inverse_frequencies()
    scaled = open_float_model(str(path)).architecture
    np.testing.assert_allclose(scaled.inverse_frequencies(), plain / factors, rtol=1e-6)
    assert scaled.context_length == 64


def split(path: Path, directory: Path, parts: int) -> list[Path]:
    from gguf import GGUFWriter

    tensors = list(gguf_files.tensors_of(directory, "Llama").items())
    paths = []
    for number in range(parts):
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{parts:05}.gguf")
        if number == 0:
            writer = gguf_files.writer_for(part, directory, "Llama")
        else:
            writer = GGUFWriter(part, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, values in tensors[number::parts]:
            writer.add_tensor(name, values)
        gguf_files.finish(writer)
        paths.append(part)
    return paths


def test_parts_of_a_split_file(tmp_path: Path) -> None:
    directory = saved("llama", tmp_path / "hf")
    paths = split(tmp_path / "m.gguf", directory, 3)
    for path in paths:
        assert_same_weights(path, directory)
    model = open_float_model(str(paths[1]))
    assert model.checkpoint.files() == paths and model.checkpoint.name == "m"


@pytest.mark.parametrize("method", ["rtn", "auto"])
def test_codes_scales_and_zero_points_are_those_of_the_directory(
    method: str, tmp_path: Path
) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from awq_edge import conversion

    directory = saved("llama-tied", tmp_path / "hf", hidden_size=96, intermediate_size=64)
    path = gguf_files.write(tmp_path / "m.gguf", directory, "Llama", kind="Q4_1")
    floats = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}
    same = rewritten(directory, tmp_path / "same", floats, "Llama")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {chr(code): code - 29 for code in range(33, 127)}
    checkpoints.save_tokenizer(same)
    with_tokenizer(path, same)
    text = tmp_path / "text"
    text.write_text("Four and twenty words that nobody has read yet. " * 40)
    options = conversion.Options(
        method=method,
        group_size=32,
        calibration=text if method != "rtn" else None,
        samples=4,
        sequence_length=32,
    )
    tensors = []
    messages: list[str] = []
    for source, name in ((path, "a"), (same, "b")):
        output = tmp_path / f"{name}.awq.gguf"
        events = conversion.Events(message=messages.append)
        conversion.convert(str(source), output, options, events=events)
        tensors.append({t.name: t.data.tobytes() for t in GGUFReader(output).tensors})
    assert tensors[0] == tensors[1]
    assert sum("rounded already (Q4_1" in message for message in messages) == 1


def with_tokenizer(path: Path, directory: Path) -> None:
    """Adds the tokenizer of single characters that ``checkpoints.save_tokenizer`` writes."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(path)
    target = path.with_suffix(".new")
    writer = GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    tokens = ["<unk>", "<s>", "</s>"] + [chr(code) for code in range(32, 127)]
    tokens = [token.replace(" ", "\u2581") for token in tokens]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"[unused{i}]" for i in range(101 - len(tokens))])
    writer.add_token_scores([0.0] * 101)
    writer.add_token_types([2, 3, 3] + [1] * 95 + [5] * 3)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    gguf_files.finish(writer)
    target.replace(path)
