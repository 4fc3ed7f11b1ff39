"""OpenFlamingo's three parts, opened as one checkpoint.

Owns how they lie in a directory: ``checkpoint.pt``, the release, which holds what was trained
alone; ``language_model/`` and ``vision_tower/``, each with the files of its own repository. Refuses
to know what the parts are called inside, or what they must agree in: ``converters/open_flamingo``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from awq_edge.checkpoints import hub, pickled_file, safetensors_file
from awq_edge.checkpoints.checkpoint import Checkpoint
from awq_edge.checkpoints.json_files import read_json, read_optional_json
from awq_edge.checkpoints.resolver import find_tensors
from awq_edge.checkpoints.stored_tensor import StoredTensor, some_rows, with_zeros
from awq_edge.converters import find, open_flamingo, vision_part
from awq_edge.converters.open_flamingo import Part
from awq_edge.errors import CheckpointError
from awq_edge.outputs.place import checkpoint_files

RELEASE, LANGUAGE, TOWER = "checkpoint.pt", "language_model", "vision_tower"
_HUB_OWNER = "openflamingo/"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
# In this order, where there is no config.json.
_OPEN_CLIP_FILES: tuple[tuple[str, Callable[[Path], dict[str, StoredTensor]]], ...] = (
    ("open_clip_model.safetensors", safetensors_file.tensors_of),
    ("open_clip_pytorch_model.bin", pickled_file.tensors_of),
)
# Of a training's file: where the weights are.
_WEIGHTS = "model_state_dict"

Tensors = dict[str, StoredTensor]


class FlamingoCheckpoint(Checkpoint):
    """The language model with what was trained; ``vision`` is the tower with the rest of it."""

    configured_by = "its configuration"
    extra_tokens = (open_flamingo.END_OF_SHOT, open_flamingo.PICTURE)

    def __init__(
        self, root: Path, config: dict[str, Any], tensors: Tensors, vision: Checkpoint
    ) -> None:
        """Takes what :func:`open_flamingo_directory` found."""
        super().__init__(root / LANGUAGE, config, tensors)
        self.vision = vision
        self._root = root

    @property
    def name(self) -> str:
        """What the model is called."""
        return hub.model_name(self._root)

    def files(self) -> list[Path]:
        """Every file that no output may replace."""
        places = (self._root, self._root / LANGUAGE, self._root / TOWER)
        return [file for place in places for file in checkpoint_files(place)]

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file that matters."""
        assert self.vision is not None
        return [*super().identity(), *self.vision.identity()]


def is_flamingo(directory: Path) -> bool:
    """Whether a directory holds OpenFlamingo's release, and no model of one file format."""
    return (directory / RELEASE).exists() and not (directory / "config.json").exists()


def refuse_release_alone(model: str) -> None:
    """Refuses the hub id of a release, which is one part of three.

    Raises:
        CheckpointError: It is such.
    """
    if model.lower().startswith(_HUB_OWNER):
        raise CheckpointError(
            f"{model} is what OpenFlamingo trained, and a part of a model alone: download its "
            f"{RELEASE} into a directory, put the files of its language model into {LANGUAGE}/ and "
            f"those of CLIP ViT-L/14 into {TOWER}/ there, and convert the directory."
        )


def open_flamingo_directory(directory: Path) -> FlamingoCheckpoint:
    """Opens the three parts; reads no weights.

    Raises:
        CheckpointError: One is missing or damaged, or they are not of one model.
        UnsupportedError: One is of a form that is not read.
    """
    missing = [name for name in (LANGUAGE, TOWER) if not (directory / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{directory} holds {RELEASE}, in which OpenFlamingo keeps what was trained alone, and "
            f"no folder {' and no folder '.join(missing)}: put the files of its language model "
            f"into {LANGUAGE}/ and those of CLIP ViT-L/14 (openai/clip-vit-large-patch14) into "
            f"{TOWER}/."
        )
    trained = _renamed(
        pickled_file.tensors_of(directory / RELEASE, _WEIGHTS), open_flamingo.trained_tensor
    )
    config = read_json(directory / LANGUAGE / "config.json")
    language = find_tensors(directory / LANGUAGE)
    tower, tower_config = _tower(directory / TOWER)
    tensors = _language(config, language, trained)
    decoder = find(config).architecture(config)
    shapes = {name: tensor.shape for name, tensor in trained.items()}
    whole = open_flamingo.whole_config(shapes, decoder.layers, decoder.hidden_size, tower_config)
    seen = {
        name: tensor
        for name, tensor in trained.items()
        if name.startswith("resampler.")
        or (name.startswith("blocks.") and any(part in name for part in vision_part.SEEN))
    }
    vision = Checkpoint(directory / TOWER, whole, {**tower, **seen})
    return FlamingoCheckpoint(directory, config, tensors, vision)


def _renamed(tensors: Tensors, parts_of: Callable[[str], list[Part]]) -> Tensors:
    """Tensors by the names of parts, those apart that hold several."""
    found = {}
    for name, tensor in tensors.items():
        for part in parts_of(name):
            rows = tensor.shape[0] // part.shares if tensor.shape else 0
            found[part.name] = (
                tensor if part.shares == 1 else some_rows(tensor, part.share * rows, rows)
            )
    return found


def _language(config: dict[str, Any], own: Tensors, trained: Tensors) -> Tensors:
    """The language model's tensors, those that were trained in their place.

    Its tables end with the tokenizer that OpenFlamingo gave it: ``vocab_size`` becomes their rows.
    A head that has fewer, since nobody trained it, gives 0 for the others.
    """
    converter = find(config)
    architecture = converter.architecture(config)
    embedding, head = (
        str(converter.checkpoint_name(name)) for name in ("token_embd.weight", "output.weight")
    )
    merged = {**own, **{k: v for k, v in trained.items() if not k.startswith("resampler.")}}
    if embedding not in trained:
        return merged
    rows = trained[embedding].shape[0]
    config["vocab_size"] = rows
    if not architecture.tied_head and head in merged:
        stored = merged[head]
        short = rows - stored.shape[0]
        merged[head] = some_rows(stored, 0, rows) if short <= 0 else with_zeros(stored, short)
    elif head in own and head not in trained:
        del merged[head]  # a copy of the table before it was trained
    return merged


def _tower(directory: Path) -> tuple[Tensors, dict[str, Any]]:
    """A CLIP's tower by our prefix and transformers' names, and its configuration."""
    if (directory / "config.json").exists():
        config = read_json(directory / "config.json")
        nested = config.get("vision_config")
        named = {open_flamingo.clip_tensor(k): v for k, v in find_tensors(directory).items()}
        found = {name: tensor for name, tensor in named.items() if name is not None}
        return found, {**vision_part.CLIP, **(nested if isinstance(nested, dict) else config)}
    for name, tensors_of in _OPEN_CLIP_FILES:
        if (directory / name).exists():
            found = _renamed(tensors_of(directory / name), open_flamingo.open_clip_tensor)
            shapes = {name: tensor.shape for name, tensor in found.items()}
            settings = read_optional_json(directory / _OPEN_CLIP_CONFIG)
            return found, open_flamingo.open_clip_config(shapes, settings)
    names = ", ".join(name for name, _ in _OPEN_CLIP_FILES)
    raise CheckpointError(
        f"{directory} holds neither config.json, as CLIP's repositories of transformers have it, "
        f"nor {names}: put the files of openai/clip-vit-large-patch14 there."
    )
