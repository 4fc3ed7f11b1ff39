"""OPT and GPT-BigCode: their forms against transformers, their files' names and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks that torch and transformers are there)
from awq_edge.converters import find  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.errors import UnsupportedError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.hf_tokenizer import read_tokenizer  # noqa: E402

OPT: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    ffn_dim=96,
    max_position_embeddings=32,
    pad_token_id=None,
)
BIGCODE: dict[str, Any] = dict(
    vocab_size=64, n_embd=64, n_layer=3, n_head=4, n_positions=32, pad_token_id=None
)
STREAM = dict(word_embed_proj_dim=32, do_layer_norm_before=False)
BARE = dict(
    _remove_final_layer_norm=True,
    layer_norm_elementwise_affine=False,
    enable_bias=False,
    activation_function="gelu",
)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", OPT),
    "opt-stream": ("opt", {**OPT, **STREAM}),
    "opt-stream-untied": ("opt", {**OPT, **STREAM, "tie_word_embeddings": False}),
    "opt-bare": ("opt", {**OPT, **BARE}),
    "bigcode": ("gpt_bigcode", BIGCODE),
    "bigcode-all-heads": (
        "gpt_bigcode",
        {**BIGCODE, "multi_query": False, "n_inner": 96, "scale_attn_weights": False},
    ),
}
TOKENS = torch.arange(28).reshape(1, 28) * 11 % 64


def random_model(row: str) -> Any:
    """Float32, with weights that make every term matter."""
    model_type, keys = ROWS[row]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for module in model.modules():
            normed = isinstance(module, torch.nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False):
                if normed and name == "weight":
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(0.0, 0.25)
    return model.float().eval()


def ours(directory: Path) -> torch.Tensor:
    model = open_float_model(str(directory))
    return torch_decoder.logits(model, model.architecture, TOKENS)


def rewritten(source: Path, target: Path, name: Any, **config: Any) -> Path:
    """A copy whose tensors have other names and whose config.json other keys; None removes one."""
    target.mkdir()
    kept = {**json.loads((source / "config.json").read_text()), **config}
    kept = {key: value for key, value in kept.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    tensors = load_file(source / "model.safetensors")
    save_file({name(key): tensor for key, tensor in tensors.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("row", ROWS)
def test_forms_equal_transformers(row: str, tmp_path: Path) -> None:
    model = random_model(row)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = model(TOKENS).logits
    assert float((ours(tmp_path) - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["novels-opt", "novels-starcoder"])
def test_trained_models_equal_transformers(name: str) -> None:
    directory = checkpoints.assets("models", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = torch.arange(96).reshape(1, 96) * 41 % 4096
    weights = open_float_model(str(directory))
    found = torch_decoder.logits(weights, weights.architecture, tokens)
    with torch.no_grad():
        theirs = model(tokens).logits
    assert float((found - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.parametrize("row", ["opt", "opt-stream", "bigcode"])
def test_older_files_read_the_same(row: str, tmp_path: Path) -> None:
    """Without a base prefix, and without the keys that equal their class's defaults."""
    random_model(row).save_pretrained(tmp_path / "new")
    base = "transformer." if row == "bigcode" else "model."
    plain = ["tie_word_embeddings", "scale_attn_weights", "enable_bias", "activation_function"]
    old = rewritten(
        tmp_path / "new",
        tmp_path / "old",
        lambda name: name.removeprefix(base),
        **dict.fromkeys(plain),
    )
    assert torch.equal(ours(old), ours(tmp_path / "new"))


def test_pickled_files_read_the_same(tmp_path: Path) -> None:
    random_model("opt").save_pretrained(tmp_path / "new")
    old = rewritten(tmp_path / "new", tmp_path / "old", str)
    tensors = load_file(old / "model.safetensors")
    # The head of older files is the embedding's storage under another name.
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    torch.save(tensors, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    assert torch.equal(ours(old), ours(tmp_path / "new"))
    assert open_float_model(str(old)).architecture.tied_head


def test_projections_need_no_untied_files(tmp_path: Path) -> None:
    """The head of the smaller embedding is the product with the matrix that leads back."""
    model = random_model("opt-stream")
    model.save_pretrained(tmp_path)
    stored = open_float_model(str(tmp_path))
    a = stored.architecture
    assert not a.tied_head and not a.final_norm and a.norm_places == "stream"
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.decoder.embed_tokens.weight"]
    torch.testing.assert_close(
        stored("token_embd.weight"), embedding @ weights["model.decoder.project_in.weight"].T
    )
    blocks = [block for _, block in stored.row_blocks("output.weight", 10)]
    torch.testing.assert_close(
        torch.cat(blocks), embedding @ weights["model.decoder.project_out.weight"]
    )


def test_a_stored_head_counts_before_a_tied_table_in_projections_too(tmp_path: Path) -> None:
    """As transformers has it where config.json ties the two and a file holds a head of its own."""
    random_model("opt-stream-untied").save_pretrained(tmp_path / "untied")
    tied = rewritten(tmp_path / "untied", tmp_path / "tied", str, tie_word_embeddings=None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32).eval()
    assert theirs.config.tie_word_embeddings
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    torch.testing.assert_close(ours(tied), expected, rtol=1e-4, atol=1e-3)


def test_a_table_under_the_heads_name_alone(tmp_path: Path) -> None:
    random_model("opt-stream").save_pretrained(tmp_path / "both")
    embedding = "model.decoder.embed_tokens.weight"
    head = rewritten(
        tmp_path / "both",
        tmp_path / "head",
        lambda name: "lm_head.weight" if name == embedding else name,
    )
    assert torch.equal(ours(head), ours(tmp_path / "both"))


def test_encoders_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="add_cross_attention"):
        config = {"model_type": "gpt_bigcode", **BIGCODE, "add_cross_attention": True}
        find(config).architecture(config)


def test_a_tokenizer_of_two_files_begins_texts_with_its_end(tmp_path: Path) -> None:
    """OPT's repositories hold no tokenizer.json; </s> is BOS and EOS."""
    letters = {chr(code): code - 28 for code in range(33, 91)}
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "\u0120": 3, "\u0120A": 4, **letters}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 A\n")
    settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    named = {**settings, "pad_token": "<pad>", "tokenizer_class": "GPT2Tokenizer"}
    flags = {"add_bos_token": True, "add_prefix_space": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, **flags}))
    config = {"model_type": "opt", **OPT, "bos_token_id": 2, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = read_tokenizer(tmp_path, config)
    assert tokenizer is not None and tokenizer.add_bos
    assert tokenizer.runtime.encode("B A") == [2, vocabulary["B"], 4]
    assert tokenizer.eos_ids == (2,)
