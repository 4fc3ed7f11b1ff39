"""Checkpoints that see pictures, each with one thing wrong: refused, or converted to what runs.

    python tests/python/hostile_vision.py [--count 300] [--seed 0] [--family smolvlm]

Families and sizes are those of vision_models.py, cross_models.py, vila_models.py, nanovlm_models.py
and flamingo_models.py. A case changes a number of the
tower's, a key of any part of config.json, the picture's token, what preprocessor_config.json says,
the names, shapes or numbers of the tower's tensors, the text of a file, or the words of the
template. Each is converted in a process with limited memory and time; what comes out is opened and
shown a picture. Wrong is: a traceback or "unexpected", memory or time without end, a crash, a file
that cannot be opened or asked, and embeddings that are not finite without the sampler's sentence.

Prints how many ended how, and every fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

FAMILIES = (
    "llava",
    "llava_siglip",
    "smolvlm",
    "gemma3",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "a resampler",  # of Idefics
    "the tower's own rows",
    "vila",  # three folders
    "nvila",
    "nanovlm",  # a config.json of its own
    "flamingo mpt",  # two folders and a pickled file
    "flamingo mosaic_gpt",
)
SECONDS = 60  # of the processor
MEMORY = 6 << 30
# What a number, a list or a table may become.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e300, float("nan"), float("inf")),
    *(2**16, 2**20 + 1, 2**31, 2**53, 2**64, 10**30, "", "8", "x", "\x00", "\x1b[2J", "../x"),
    *([], [1], [0, 0], [-1], [2**31], [None] * 5, [[1, 1]] * 3, [[0, 26]], {}, {"a": 1}, [{}]),
)
SIZES: tuple[Any, ...] = (0, -1, 1, 2, 5, 1000, 2**20, 2**31, 2**63, 10**30, 1e300, 0.5, "26", None)


def _json(
    r: random.Random, folder: Path, name: str, change: Callable[[dict[str, Any]], str]
) -> str:
    """Changes the document of one of the files of a name; gives what was changed."""
    path = r.choice(sorted(folder.rglob(name)) or sorted(folder.rglob("config.json")))
    document = json.loads(path.read_text(encoding="utf-8"))
    what = change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return f"{path.relative_to(folder)}: {what}"


def tables(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A table, and those within it."""
    yield document
    for value in document.values():
        if isinstance(value, dict):
            yield from tables(value)


def tower_size(r: random.Random, folder: Path) -> str:
    """A number that says how large the tower or what it gives is."""

    def change(config: dict[str, Any]) -> str:
        names = ("vision_config", "vision_config", "perceiver_config")
        part = r.choice([config, *(config[name] for name in names if name in config)])
        numbers = [k for k, v in part.items() if type(v) is int or isinstance(v, list)]
        keys = [*numbers, "image_size", "patch_size", "num_attention_heads", "num_channels"]
        key, value = r.choice(keys), r.choice(SIZES)
        part[key] = value
        return f"{key} = {value!r:.40}"

    return _json(r, folder, "config.json", change)


def config_value(r: random.Random, folder: Path) -> str:
    """Any key of any part of the configuration becomes anything, or goes."""

    def change(config: dict[str, Any]) -> str:
        part = r.choice(list(tables(config)))
        key = r.choice([*part, "vision_feature_layer", "scale_factor", "mm_tokens_per_image"])
        if r.random() < 0.2:
            part.pop(key, None)
            return f"without {key}"
        part[key] = r.choice(VALUES)
        return f"{key} = {part[key]!r:.40}"

    return _json(r, folder, "config.json", change)


def picture_token(r: random.Random, folder: Path) -> str:
    """The token that stands for a picture."""

    def change(config: dict[str, Any]) -> str:
        key = r.choice(
            ("image_token_id", "image_token_index", "boi_token_index", "eoi_token_index")
        )
        value = r.choice((-1, 0, 1, 127, 128, 129, 2**31, 2**32, 2**64, 0.5, None, "x", [], [100]))
        config.pop("image_token_id", None)
        config[key] = value
        return f"{key} = {value!r:.40}"

    return _json(r, folder, "config.json", change)


def preparation(r: random.Random, folder: Path) -> str:
    """How pictures are prepared."""

    def change(settings: dict[str, Any]) -> str:
        part = r.choice(list(tables(settings)))
        more = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
        more += ("do_resize", "do_normalize", "do_rescale", "do_center_crop", "patch_size")
        key = r.choice([*part, *more, "image_processor_type", "max_pixels", "min_pixels"])
        if r.random() < 0.2:
            part.pop(key, None)
            return f"without {key}"
        part[key] = r.choice((*VALUES, [0.0] * 3, [float("nan")] * 3, [1e-45] * 3, [1e38] * 3))
        return f"{key} = {part[key]!r:.40}"

    return _json(r, folder, "preprocessor_config.json", change)


def _is_of_pictures(name: str) -> bool:
    return any(w in name for w in ("vision", "visual", "projector", "connector", "perceiver"))


def tensors(r: random.Random, folder: Path) -> str:
    """Tensors of the tower and what is behind it: gone, renamed, of another shape, broken."""
    import torch
    from safetensors.torch import load_file, save_file

    path = r.choice([*sorted(folder.rglob("*.safetensors")), *sorted(folder.rglob("*.pt"))])
    pickled = path.suffix == ".pt"
    held = torch.load(path, weights_only=True) if pickled else load_file(path)
    seen = [name for name in held if _is_of_pictures(name)] or list(held)
    name = r.choice(seen)
    how = r.choice(("gone", "all gone", "named", "flat", "cut", "empty", "number", "number", "all"))
    tensor = held[name]
    if how == "all gone":
        held = {key: value for key, value in held.items() if key not in seen}
    elif how == "gone":
        del held[name]
    elif how == "named":
        held[name.upper()] = held.pop(name)
    elif how == "flat":
        held[name] = tensor.reshape(-1)
    elif how == "cut":
        held[name] = tensor[: len(tensor) // 2].contiguous()
    elif how == "empty":
        held[name] = tensor[:0].contiguous()
    else:
        value = r.choice((float("nan"), float("inf"), 3e38, -3e38, 1e30, 1e10, 7e4, 1e-45, 0.0))
        numbers = tensor.reshape(-1)
        numbers[r.randrange(len(numbers)) if how == "number" else slice(None)] = value
        how = f"{how} {value}"
    if pickled:
        torch.save(held, path)
    else:
        save_file(held, path)
    return f"{name} {how}"


def text(r: random.Random, folder: Path) -> str:
    """A file that is no document of its kind."""
    names = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json")
    name = r.choice((*names, "chat_template.jinja", "generation_config.json", "*.pt"))
    found = sorted(folder.rglob(name))
    path = r.choice(found) if found else folder / name.replace("*", "checkpoint")
    content = r.choice(
        (b"", b"null", b"[]", b"5", b"{", b"\xff\xfe{}", b'{"a":' * 5000, b"NaN", b"1" * 5000, None)
    )
    if content is None:
        path.unlink(missing_ok=True)
        return f"without {path.name}"
    path.write_bytes(content)
    return f"{path.name}: {content[:20]!r}"


def template(r: random.Random, folder: Path) -> str:
    """A template that shows no picture, several, or something else."""
    path = folder / "chat_template.jinja"
    said = r.choice(
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "{% for m in messages %}<image><image><image>{% endfor %}",
            "<image>" * 1000,
            "{% for m in messages %}{{ m.content[0].image.x }}{% endfor %}",
            "{{ messages[0].content[0]['image'] }}",
            "{% for i in range(10**9) %}<image>{% endfor %}",
            "{{ raise_exception('no pictures') }}",
            "\x00<image>\x1b[2J",
        )
    )
    path.write_text(said, encoding="utf-8")
    return said[:60]


KINDS = (
    *(tower_size, tower_size, config_value, config_value, picture_token, preparation, preparation),
    *(tensors, tensors, text, template),
)


def make_family(family: str, folder: Path) -> None:
    """The sound checkpoint."""
    import cross_models
    import flamingo_models
    import nanovlm_models
    import vila_models
    import vision_models

    folder.mkdir()
    if family == "nanovlm":
        nanovlm_models.NanoVlm().save(folder)
        return
    if family == "vila":
        vila_models.Vila().save(folder)
        return
    if family == "nvila":
        vila_models.Vila(decoder="qwen2", vocab_size=300).save(folder, "qwen2")
        return
    if family.startswith("flamingo"):
        flamingo_models.Flamingo(family.split()[1]).save(folder)
        return
    of = cross_models if family in cross_models.ROWS else vision_models
    of.save(family, folder)
    of.save_tokenizer(folder)
    if not (folder / "chat_template.jinja").exists():
        said = vision_models.TEMPLATE.replace("<u>", "").replace("<a>", "")
        (folder / "chat_template.jinja").write_text(said, encoding="utf-8")


def ask(path: Path) -> str:
    """Opens a converted file and shows it a picture; a word about it."""
    import numpy as np

    from awq_edge import GenerationConfig, Model, errors

    pixels = np.arange(40 * 30 * 3, dtype=np.uint64).reshape(40, 30, 3) ** 2 % 251
    greedy = GenerationConfig(max_tokens=2, temperature=0.0)
    with Model.open(path, threads=1, check_memory=False) as model:
        said = [{"role": "user", "content": "what colour ?"}]
        try:
            model.generate([1, 5], greedy).text()
            model.pictures.encoded(model.pictures.prepare(pixels.astype(np.uint8)))
            model.chat(said, greedy, images=[pixels.astype(np.uint8)]).text()
        except (errors.FileInvalidError, errors.UnsupportedError, errors.ContextFullError) as error:
            return f"asked: {error}"
        except errors.InvalidArgumentError as error:  # more places in the template than pictures
            return f"asked: {error}"
    return "answered"


def try_one(seed: int, base: Path, place: Path) -> tuple[str, str]:
    """How one case ended, and what it was."""
    from awq_edge import errors
    from awq_edge.cli import _errors
    from awq_edge.cli.main import app

    r = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    folder = place / f"model{seed}"
    shutil.copytree(base, folder)
    what = f"{base.name}, {kind.__name__}, {kind(r, folder)}"
    output = place / f"out{seed}.gguf"
    method = ["--method", "rtn"] if seed % 5 else ["--method", "awq", "--samples", "2"]
    method += [] if seed % 5 else ["--sequence-length", "16", "--calibration", str(place / "words")]
    arguments = ["convert", str(folder), "-o", str(output), "--group-size", "32", "-q", *method]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            app(arguments, prog_name="awq-edge", standalone_mode=False)
            status = 0
        except MemoryError:
            return "memory", what
        except BaseException as error:
            status = _errors.exit_status(error)
    words = said.getvalue()
    try:
        if any(w in words for w in ("Please report it", "a bug in awq-edge", "Traceback")):
            return "unexpected", f"{what}: {words.strip()[-300:]}"
        if status != 0:
            return "refused", f"{what}: {words.strip()[-200:]}"
        try:
            return "written", f"{what}: {ask(output)}"
        except errors.AwqEdgeError as error:
            return "unrunnable", f"{what}: {error}"
        except BaseException as error:
            return "unrunnable", f"{what}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        output.unlink(missing_ok=True)


def _work(bases: list[str], place: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # backtraces of other packages
    while True:
        seed = pipe.recv()
        if seed is None:
            return
        base = Path(bases[seed // len(KINDS) % len(bases)])
        pipe.send(try_one(seed, base, Path(place)))


def _answers(process: Any, pipe: Any) -> bool:
    """Waits for an answer; a busy machine is no hang, nor is one that begins."""
    worker = psutil.Process(process.pid)

    def used() -> float:
        times = worker.cpu_times()
        return float(times.user + times.system)

    begun, end = used(), time.monotonic() + 10 * SECONDS
    while not pipe.poll(2):
        if not process.is_alive():
            break  # the pipe says so
        if used() - begun > SECONDS or time.monotonic() > end:
            return False
    return True


def hostile(count: int, seed: int, families: tuple[str, ...], verbose: bool = False) -> Any:
    """Tries so many cases; gives how many ended how, and the faults."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    context = multiprocessing.get_context("spawn")
    process: Any = None
    parent: Any = None
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "words").write_text("what colour is the thing ? red green blue " * 60)
        bases = [Path(place) / f"base{number}-{name}" for number, name in enumerate(families)]
        for base, family in zip(bases, families):
            make_family(family, base)
        for number in range(seed, seed + count):
            if process is None:
                parent, child = context.Pipe()
                arguments = ([str(base) for base in bases], place, child)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                child.close()
            parent.send(number)
            try:
                if _answers(process, parent):
                    outcome, what = parent.recv()
                else:
                    outcome, what = "hang", f"seed {number}"
                    process.kill()
            except EOFError:
                process.join()
                outcome, what = "crash", f"seed {number}: status {process.exitcode}"
            if outcome in ("hang", "crash"):
                process.join()
                process = None
            counts[outcome] += 1
            if outcome not in ("refused", "written"):
                faults.append(f"{outcome}, seed {number}: {what}")
            if verbose:
                print(f"{number} {outcome}: {what}", file=sys.stderr, flush=True)
        if process is not None:
            parent.send(None)
            process.join(10)
    return counts, faults


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--verbose", action="store_true", help="tell every case")
    asked = parser.parse_args()
    families = (asked.family,) if asked.family else FAMILIES
    counts, faults = hostile(asked.count, asked.seed, families, asked.verbose)
    print(f"{sum(counts.values())} checkpoints: {dict(counts)}")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
