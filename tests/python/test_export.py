"""Export: AutoAWQ directories and stock llama.cpp files hold what the packed file holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import quantised_checkpoints as made  # noqa: E402  (after the checks for torch and transformers)
from checkpoints import FAMILIES, LLAMA3_ROPE, assets, random_model, save  # noqa: E402
from conftest import BAD_FILES, STORIES, Command  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from awq_edge import conversion, layouts, stages, torch_decoder  # noqa: E402
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.checkpoints import open_checkpoint  # noqa: E402
from awq_edge.errors import InvalidArgumentError, UnsupportedError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.hf_tokenizer import read_tokenizer  # noqa: E402
from awq_edge.interchange.export import Export  # noqa: E402
from awq_edge.interchange.export_gguf import write_gguf  # noqa: E402
from awq_edge.interchange.export_hf_awq import export_hf_awq  # noqa: E402
from awq_edge.interchange.importer import import_checkpoint  # noqa: E402
from awq_edge.interchange.quantised_checkpoint import open_quantised  # noqa: E402
from awq_edge.model_file import PackedFile, read_dequantised  # noqa: E402
from awq_edge.outputs.place import Place  # noqa: E402

# What the packed file holds otherwise than the checkpoint, in the way of another family.
ABSORBED = ("phi3", "granite-biases")
# Sizes that AutoAWQ's format can hold.
SIZES = dict(made.SIZES, num_hidden_layers=2)


def converted(tmp_path: Path, family: str, bits: int = 4, **sizes: Any) -> tuple[Path, Path]:
    """A random float checkpoint, and the packed file that plain rounding makes of it."""
    source = save(random_model(family, **{**SIZES, **sizes}), tmp_path / "source")
    output = tmp_path / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=bits, group_size=32)
    conversion.convert(str(source), output, options)
    return source, output


def unpack_gemm(tensors: dict[str, torch.Tensor], name: str, group_size: int) -> np.ndarray:
    """The weights [n, k] of an AutoAWQ matrix, read one output at a time."""
    words, zero_words, scales = (
        tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales")
    )
    k, n = len(words), scales.shape[1]
    groups = np.arange(k) // group_size
    weights = np.zeros((n, k), np.float32)
    for output in range(n):
        shift = 4 * made.GEMM_NIBBLES.index(output % 8)
        codes = words[:, output // 8].astype(np.int64) >> shift & 15
        zeros = zero_words[:, output // 8].astype(np.int64) >> shift & 15
        weights[output] = scales[groups, output].astype(np.float32) * (codes - zeros[groups])
    return weights


# ---- AutoAWQ ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_checkpoint", [False, True], ids=["file alone", "with checkpoint"])
@pytest.mark.parametrize(
    "family",
    ["llama", "llama-tied", "llama-biases", "mistral-window", "qwen2", "qwen3", *ABSORBED],
)
def test_exported_weights_are_those_of_the_file(
    family: str, with_checkpoint: bool, tmp_path: Path
) -> None:
    source, packed = converted(tmp_path, family)
    checkpoint = open_checkpoint(str(source)) if with_checkpoint else None
    export_hf_awq(packed, tmp_path / "exported", checkpoint)
    tensors = load_file(tmp_path / "exported/model.safetensors")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "exported")
    assert config.quantization_config["quant_method"] == "awq"

    # transformers' own model, filled by the unpacker above, computes what our decoder computes.
    file = read_dequantised(packed)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: value.float() for name, value in tensors.items() if value.dtype != torch.int32}
    for name in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
        del state[f"{name}.scales"]
        state[f"{name}.weight"] = torch.from_numpy(unpack_gemm(tensors, name, 32))
    missing = set(model.load_state_dict(state, strict=False).missing_keys)
    assert missing <= ({"lm_head.weight"} if file.architecture.tied_head else set())
    model.tie_weights()
    for layer, ours, theirs in (
        (0, "attn_q", "self_attn.q_proj"),
        (1, "ffn_down", "mlp.down_proj"),
    ):
        np.testing.assert_array_equal(
            state[f"model.layers.{layer}.{theirs}.weight"].numpy(),
            file.tensors[f"blk.{layer}.{ours}.weight"],
        )
    weights = {name: torch.from_numpy(value) for name, value in file.tensors.items()}
    tables = ("token_embd.weight", "output.weight")
    if checkpoint is not None and family not in ABSORBED:
        floats = open_float_model(str(source))
        weights.update({name: floats(name) for name in tables if name in weights})
    for name in weights:
        if name in tables or "norm" in name or name.endswith("bias"):
            weights[name] = weights[name].half().float()  # what the format keeps
    tokens = torch.arange(1, 33).reshape(2, 16)
    with torch.no_grad():
        got = model.eval()(tokens).logits
    expected = torch_decoder.logits(weights.__getitem__, file.architecture, tokens)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_what_no_written_family_computes_is_refused_before_the_work(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=32,
    )
    source = save(transformers.OPTForCausalLM(config), tmp_path / "source")
    options = conversion.Options(method="rtn", group_size=32)
    for kind, words in (("hf-awq", "norm bias"), ("gguf", "activation")):
        with pytest.raises(UnsupportedError, match=words):
            conversion.convert(
                str(source), tmp_path / "m", options, export=Export(kind, tmp_path / "out")
            )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_import_then_export_gives_the_same_integers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    made.write_gemm(source)
    import_checkpoint(open_quantised(str(source)), tmp_path / "model.awq.gguf")
    export_hf_awq(tmp_path / "model.awq.gguf", tmp_path / "exported")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "exported/model.safetensors")
    integer = [name for name in before if ".layers." in name and "_proj." in name]
    assert len(integer) == 3 * 14
    for name in integer:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name


def test_transformers_loads_an_export_by_its_own_awq_path(tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="transformers reads AWQ through gptqmodel only")
    _, packed = converted(tmp_path, "llama")
    export_hf_awq(packed, tmp_path / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    file = read_dequantised(packed)
    weights = {name: torch.from_numpy(value) for name, value in file.tensors.items()}
    tokens = torch.arange(1, 17).reshape(1, 16)
    with torch.no_grad():
        got = model(tokens).logits.float()
    expected = torch_decoder.logits(weights.__getitem__, file.architecture, tokens)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-2  # fp16 arithmetic


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    source = assets("models", "stories260k")
    file = PackedFile(STORIES)
    from awq_edge.interchange import hf_config

    hf_config.write_tokenizer(file.metadata, tmp_path)
    text = "Once upon a time, there was a naïve “girl”."
    expected = transformers.AutoTokenizer.from_pretrained(source)(text).input_ids
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == expected
    hf_config.copy_tokenizer(source, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("bits", "sizes", "words"),
    [
        (3, {}, "has 3 bits"),
        (4, {"intermediate_size": 180}, "multiples"),
        (4, {"intermediate_size": 208}, "multiples"),
    ],
    ids=["three bits", "rows", "columns"],
)
def test_what_the_format_cannot_hold_is_refused(
    bits: int, sizes: dict[str, int], words: str, tmp_path: Path
) -> None:
    _, packed = converted(tmp_path, "llama", bits, **sizes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnsupportedError, match=words):
        export_hf_awq(packed, tmp_path / "exported")
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    _, packed = converted(tmp_path, "llama")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/precious").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="exists already"):
        export_hf_awq(packed, tmp_path / "exported")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["precious"]


def test_safetensors_header_is_padded_and_exact(tmp_path: Path) -> None:
    from awq_edge.interchange.safetensors_writer import write_safetensors

    values = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.ones(5, np.float16)}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, [("a", "I32", (2, 3)), ("b", "F16", (5,))], values.__getitem__)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    assert path.stat().st_size == 8 + length + 24 + 10
    loaded = load_file(path)
    for name, value in values.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)


# ---- llama.cpp ----------------------------------------------------------------------------------

LLAMA_CPP_FAMILIES = [
    "llama",
    "llama-tied",
    "llama-biases",
    "llama-llama3-rope",
    "llama-linear-rope",
    "llama-no-sharing",
    "mistral-window",
    "qwen2",
    "qwen3",
]


@pytest.mark.parametrize("family", LLAMA_CPP_FAMILIES)
def test_llama_cpp_computes_the_same_logits(family: str, tmp_path: Path) -> None:
    """llama.cpp works on fp16 weights and rounds activations to fp16: 2^-11 per product."""
    llama_cpp = pytest.importorskip("llama_cpp")
    sizes = {"rope_parameters": dict(LLAMA3_ROPE)} if family == "llama-llama3-rope" else {}
    source = open_float_model(str(save(random_model(family, **{**SIZES, **sizes}), tmp_path)))
    path = tmp_path / "stock.gguf"
    write_gguf(Place(path), source.architecture, {}, lambda name: source(name).numpy())
    expected = torch_decoder.logits(
        lambda name: source(name).half().float() if source(name).dim() == 2 else source(name),
        source.architecture,
        torch.arange(1, 7).reshape(1, 6),
    )[0].numpy()
    model = llama_cpp.Llama(str(path), n_ctx=16, n_threads=1, logits_all=True, verbose=False)
    model.eval(list(range(1, 7)))
    got = np.array(model.scores[:6])
    assert np.abs(got - expected).max() < 5e-3 * np.abs(expected).max()


def test_trained_models_read_texts_alike_and_agree(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    source = open_float_model(str(assets("models", "stories260k")))
    tokenizer = read_tokenizer(source.checkpoint.directory, source.checkpoint.config)
    assert tokenizer is not None
    path = tmp_path / "stock.gguf"
    write_gguf(
        Place(path), source.architecture, tokenizer.to_metadata(), lambda name: source(name).numpy()
    )
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    text = "Once upon a time, there was a little girl named Lily. naïve “house”\n\nYes."
    tokens = [1, *tokenizer.encode(text)]
    assert model.tokenize(text.encode(), add_bos=True) == tokens
    model.eval(tokens)
    got = np.array(model.scores[: len(tokens)])
    expected = torch_decoder.logits(source, source.architecture, torch.tensor([tokens]))[0].numpy()
    assert np.abs(got - expected).max() < 5e-3 * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("name", ["gpt2", "smollm", "llama2", "mistral"])
def test_llama_cpp_reads_texts_like_the_tokenizer(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizers = pytest.importorskip("tokenizers")
    stored = read_tokenizer(assets("tokenizers", name), {})
    assert stored is not None
    tokenizer = tokenizers.Tokenizer.from_str(stored.json)
    size = tokenizer.get_vocab_size()
    architecture = Architecture(1, 32, size + 3, 64, 1, 1, 32, 32, 1e-5, 1e4)
    path = tmp_path / "stock.gguf"

    def zeros(name: str) -> np.ndarray:
        return np.zeros(stages.tensor_shape(architecture, name), np.float32)

    write_gguf(Place(path), architecture, stored.to_metadata(), zeros)
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    golden = assets("tokenizers", "gpt2", "golden.inp").read_text(encoding="utf-8")
    cases = golden.split("\n__ggml_vocab_test__\n")
    cases += assets("text", "wikitext2_test.txt").read_text(encoding="utf-8")[:20000].split("\n")
    assert len(cases) > 100
    for case in cases:
        if "<unk>" in case:
            continue  # llama.cpp takes it for the token, tokenizers for text
        got = model.tokenize(case.encode(), add_bos=False, special=False)
        assert got == tokenizer.encode(case, add_special_tokens=False).ids, case


def test_a_conversion_exports_its_scaled_weights(command: Command, tmp_path: Path) -> None:
    """Scaled weights compute what the original ones do, and are not the original ones."""
    llama_cpp = pytest.importorskip("llama_cpp")
    directory = assets("models", "stories260k")
    path = tmp_path / "scaled.gguf"
    result = command(
        "convert", directory, "-o", tmp_path / "model.awq.gguf", "--samples", 4,
        "--sequence-length", 64, "--export", "gguf", path, "--quiet",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.awq.gguf", "scaled.gguf"]
    source = open_float_model(str(directory))
    tokens = [1, *range(300, 340)]
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(tokens)
    got = np.array(model.scores[: len(tokens)])
    expected = torch_decoder.logits(source, source.architecture, torch.tensor([tokens]))[0].numpy()
    assert np.abs(got - expected).max() < 5e-3 * np.abs(expected).max()
    from gguf import GGUFReader

    norms = {
        tensor.name: tensor.data for tensor in GGUFReader(path).tensors if "norm" in tensor.name
    }
    changed = [name for name in norms if not np.allclose(norms[name], source(name).numpy())]
    assert len(changed) >= 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{stories}", "hf-awq", "{new}"), "has 2 bits; convert with --bits 4"),
        (("{stories}", "onnx", "{new}"), "no export 'onnx'"),
        (("{stories}", "gguf", "{old}"), "exists already"),
        (("{stories}", "gguf", "{new}/below"), "no directory"),
        (("{new}", "gguf", "{new}2"), "No such file"),
        (("{old}", "gguf", "{new}"), "does not begin with the magic GGUF"),
    ],
)
def test_the_export_command_refuses_in_one_sentence(
    arguments: tuple[str, ...], words: str, command: Command, tmp_path: Path
) -> None:
    places = {"stories": STORIES, "new": tmp_path / "new", "old": tmp_path / "old"}
    places["old"].write_text("mine, and long enough to hold a header " * 10)
    command("export", *(text.format(**places) for text in arguments)).assert_one_sentence(words)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("fault", "words"), BAD_FILES.items())
def test_a_bad_file_is_told_as_the_runtime_tells_it(
    fault: str,
    words: str,
    command: Command,
    broken_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = broken_file(fault)
    result = command("export", path, "gguf", tmp_path / "out.gguf")
    result.assert_one_sentence(str(path), words)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["gguf", "hf-awq"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"version"', b'\0"version"'),
        (b'"version"', b'"ver\xf2ion"'),
        (b'"model"', b'"nodel"'),
        (b"stories260k", b"stories\xf260k"),
    ],
)
def test_damaged_texts_are_a_sentence(
    command: Command, kind: str, before: bytes, after: bytes, tmp_path: Path
) -> None:
    content = STORIES.read_bytes()
    assert before in content
    damaged = tmp_path / "damaged.awq.gguf"
    damaged.write_bytes(content.replace(before, after, 1))
    result = command("export", damaged, kind, tmp_path / "out")
    result.assert_one_sentence()
    assert not (tmp_path / "out").exists()


def test_unknown_ways_to_cut_texts_are_refused(tmp_path: Path) -> None:
    from awq_edge.interchange.gguf_tokenizer import translate

    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    with pytest.raises(UnsupportedError, match="Whitespace"):
        translate(json.dumps(tokenizer), 1)
    tokenizer["model"]["type"] = "Unigram"
    with pytest.raises(UnsupportedError, match="Unigram"):
        translate(json.dumps(tokenizer), 1)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    source = open_float_model(str(save(random_model("llama", **SIZES), tmp_path / "source")))

    def too_large(name: str) -> np.ndarray:
        return source(name).numpy() * (1e6 if name == "blk.1.ffn_up.weight" else 1.0)

    with pytest.raises(UnsupportedError, match="ffn_up"):
        write_gguf(Place(tmp_path / "stock.gguf"), source.architecture, {}, too_large)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_layout_headers_are_read_alone(tmp_path: Path) -> None:
    _, packed = converted(tmp_path, "llama")
    assert PackedFile(packed).layout("blk.0.attn_k.weight") == layouts.Layout(64, 128, 4, 32)


assert set(LLAMA_CPP_FAMILIES) <= set(FAMILIES)
