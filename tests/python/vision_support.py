"""What tests of models that see pictures have in common: pictures, differences, runs of a file."""

import io
import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.generation import GenerationConfig
from awq_edge.model_file import read_dequantised

BOUND = 1e-4  # the largest difference of float32 over the largest magnitude
GREEDY = GenerationConfig(max_tokens=6, temperature=0.0)
QUESTION = [{"role": "user", "content": "what colour ?"}]
# The same question about a picture, its answer, and another one.
LONGER = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour ?"}]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "yes ?"},
]


def picture(height, width, seed=0):
    """Noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height, width, seed=0):
    """Smooth noise, as a photograph is: waves under some grain."""
    drawn = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * drawn.uniform(0, 0.4) + y * drawn.uniform(0, 0.4)) for _ in range(3)]
    grain = drawn.normal(0, 12, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, axis=2) + grain, 0, 255).astype(np.uint8)


def png(pixels):
    """The bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def difference(ours, theirs):
    """The largest, over the largest magnitude, of tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def opened(directory):
    """The float model of a checkpoint, and its tower."""
    source = open_float_model(str(directory))
    return source, open_vision_part(source)[0]


def normalised(vision, pixels):
    """What a model of transformers reads, float32 [b, 3, s, s], by its processor's arithmetic."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (vision.processor.mean, vision.processor.deviation)
    )
    return ((pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std).float()


def change_tensors(path, change):
    """Lets a function change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, change):
    """The same with a file of JSON."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def converted(directory):
    """The file of a checkpoint, rounded to 8 bits."""
    path = directory / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=8, group_size=32)
    conversion.convert(str(directory), path, options)
    return path


def last_logits(model, prompt):
    """Behind a prompt that a session reads anew."""
    with model.session() as session:
        session.generate(prompt, GREEDY).start()
        return session.last_logits()


def float_rows(path, vision, tiled):
    """What the float tower makes of tiles with a file's weights, float32 [tiles, rows, numbers]."""
    held = read_dequantised(path)
    return torch_tower.encoded(
        vision.architecture,
        lambda name: torch.from_numpy(held.tensors[name]),
        torch.from_numpy(tiled.tiles),
    ).numpy()


def float_logits(path, prompt, rows, **how):
    """The last logits of the float decoder with a file's weights, behind a prompt with rows.

    ``how`` is for ``torch_decoder.logits``.
    """
    held = read_dequantised(path)
    tokens = torch.tensor([prompt.tokens])
    where = torch.zeros_like(tokens, dtype=torch.bool)
    for span in prompt.spans:
        where[0, span.begin : span.end] = True
    tokens[where] = 0  # a placeholder may be no token of the model's
    return torch_decoder.logits(
        lambda name: torch.from_numpy(held.tensors[name]),
        held.architecture,
        tokens,
        pictures=(where, torch.from_numpy(np.ascontiguousarray(rows))),
        **how,
    )[0, -1].numpy()


def relative_error(ours, theirs):
    """In norm."""
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def bits_of_every_table(path, shown, context, monkeypatch, threads=(1, 3)):
    """Rows of pictures and the logits behind them, once for each that differs."""
    from test_golden import runnable_kernels

    found, runs = set(), 0
    for kernels in runnable_kernels():
        for count in threads:
            monkeypatch.setenv("AWQ_EDGE_KERNELS", kernels)
            with Model.open(path, context_length=context, threads=count) as model:
                prompt = model.picture_chat(QUESTION, shown)[1]
                rows = [model.pictures.encoded(span.picture).tobytes() for span in prompt.spans]
                found.add(b"".join([*rows, last_logits(model, prompt).tobytes()]))
                runs += 1
    assert runs > 2
    return found
