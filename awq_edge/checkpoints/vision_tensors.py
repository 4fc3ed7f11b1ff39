"""The tower and the connector of a checkpoint, by our names.

Owns that every tensor of them is there, that none is too many, and which files say how pictures are
prepared. Refuses to know a family: ``awq_edge.converters`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from awq_edge.checkpoints.checkpoint import Checkpoint
from awq_edge.checkpoints.json_files import read_json
from awq_edge.converters.preprocessor import processor
from awq_edge.converters.vision_part import VisionPart
from awq_edge.errors import CheckpointError
from awq_edge.vision.architecture import VisionArchitecture
from awq_edge.vision.normalisation import pixel_values

_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_SHOWN = 3  # names in an error text
_MADE = ("v.pixel_values", "v.rope.inverse_frequencies")  # of numbers, not of tensors
_THIRDS = {"attn_q": 0, "attn_k": 1, "attn_v": 2}  # of a matrix that holds all three


class VisionTensors:
    """A tower's tensors, read one at a time; calling it makes it a WeightSource.

    Attributes:
        checkpoint: The tensors of the tower and the connector alone.
        part: What config.json says of them.
        architecture: The record.
        processor: What becomes of a picture.
    """

    def __init__(self, checkpoint: Checkpoint, part: VisionPart) -> None:
        """Checks that the checkpoint holds what its configuration says, and nothing else.

        Raises:
            CheckpointError: A tensor is missing, has another shape or is too many; or no file says
                how pictures are prepared.
            UnsupportedError: Pictures are prepared in a way that is not ours.
        """
        self.checkpoint = checkpoint
        self.part = part
        self.architecture: VisionArchitecture = part.architecture
        wanted = {}
        for name in self.tensor_names():
            if name not in _MADE:
                wanted[part.stored_name(name)] = self._stored_shape(name)
        missing = [name for name in wanted if name not in checkpoint]
        if missing:
            raise CheckpointError(
                f"The checkpoint {checkpoint.directory} has no {_some(missing)} of its "
                f"{part.family} tower and connector: download it again, or merge it with its tower."
            )
        for name, shape in wanted.items():
            checkpoint.check(name, shape)
        spare = [
            name for name in checkpoint.names() if name not in wanted and not part.is_unused(name)
        ]
        if spare:
            raise CheckpointError(
                f"The checkpoint {checkpoint.directory} holds {_some(spare)}, which the "
                f"{part.family} tower of its config.json does not have; one of the two is wrong."
            )
        where, settings = _processor_settings(checkpoint.beside, part.settings)
        a = self.architecture
        side = a.step if a.rotary else a.image_size
        self.processor = processor(
            settings, part.family, side, part.aspect, part.tiles, where=str(where)
        )
        if part.sizes is not None and part.sizes != self.processor.preprocessing.sizes:
            raise CheckpointError(
                f"The image_grid_pinpoints of {where} are not those of config.json: pictures would "
                "be cut otherwise than they are put together."
            )

    def tensor_names(self) -> list[str]:
        """Our names, in file order."""
        return self.architecture.tensor_names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        return self.architecture.tensor_shape(name)

    def __call__(self, name: str, device: torch.device | None = None) -> torch.Tensor:
        """Reads a tensor by our name, float32."""
        if name == "v.pixel_values":
            made = self.processor
            table = pixel_values(made.mean, made.deviation, made.factor)
            return torch.from_numpy(table.reshape(-1)).to(device)
        if name == "v.rope.inverse_frequencies":
            quarter = self.architecture.head_size // 4
            table = self.part.theta ** (-np.arange(quarter) / quarter)
            return torch.from_numpy(table.astype(np.float32)).to(device)
        stored = self.part.stored_name(name)
        values = self.checkpoint.tensor(stored, self._stored_shape(name), device)
        if name == "v.position_embd.weight" and self.part.positions is not None:
            values = values[torch.from_numpy(self.part.positions).to(values.device)]
        if name == "mm.0.weight" and self.part.transposed:
            values = values.T.contiguous()
        if name == "mm.norm.weight":
            values = values + self.part.norm_offset
        if name == "v.patch_embd.weight" and self.part.frames:
            values = values.sum(dim=2)  # a still picture is the same in every frame
        third = _THIRDS.get(name.split(".")[-2]) if self.part.fused else None
        if third is not None:
            values = values.chunk(3)[third].contiguous()
        return values.reshape(self.shape(name))

    def prompt(self, tokenizer_json: str | None) -> str:
        """The entry of a model file that says where pictures stand in a text.

        Raises:
            CheckpointError: The tokenizer has no such token.
        """
        entry: dict[str, Any] = {"token": self.part.placeholder, "layout": self.part.layout}
        if self.part.layout == "squares":
            entry["square"] = self.architecture.step
        if self.part.end:
            entry["end"] = self.part.end
        if self.part.apart:
            entry["apart"] = True
        if self.part.most_tiles:
            entry["most_tiles"] = self.part.most_tiles
        if self.part.ends is not None:
            entry["ends"] = self.part.ends
        if tokenizer_json is not None:
            added = json.loads(tokenizer_json).get("added_tokens", [])
            spelt = {token.get("id"): token.get("content") for token in added}
            if self.part.spelt:
                ids = {word: number for number, word in spelt.items()}
                if self.part.spelt not in ids:
                    raise CheckpointError(
                        f"The tokenizer of {self.checkpoint.directory} has no added token "
                        f"{self.part.spelt}, which stands for pictures in its family."
                    )
                entry["token"] = ids[self.part.spelt]
            wanted = {"placeholder": entry["token"]}
            if self.part.around is not None:
                wanted["begin"], wanted["end"] = self.part.around
            for name, number in wanted.items():
                if number not in spelt:
                    raise CheckpointError(
                        f"The tokenizer of {self.checkpoint.directory} has no added token "
                        f"{number}, which stands for pictures by config.json."
                    )
                entry[name] = spelt[number]
        return json.dumps(entry, sort_keys=True)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        a = self.architecture
        if name == "v.patch_embd.weight":
            frames = (self.part.frames,) if self.part.frames else ()
            return (a.hidden_size, 3, *frames, a.patch_size, a.patch_size)
        if name == "v.position_embd.weight":
            table = (a.position_grid**2 or a.positions, a.hidden_size)
            return (1, *table) if self.part.one_table else table
        if name == "v.resampler.latents" and a.resampler is not None:
            return (a.resampler.rows, a.hidden_size)
        shape = self.shape(name)
        if self.part.fused and name.split(".")[-2] in _THIRDS:
            return (3 * shape[0], *shape[1:])
        return shape[::-1] if name == "mm.0.weight" and self.part.transposed else shape


def _some(names: list[str]) -> str:
    first = ", ".join(names[:_SHOWN])
    return first if len(names) <= _SHOWN else f"{first} and {len(names) - _SHOWN} more"


def _processor_settings(
    directory: Path, otherwise: Mapping[str, Any] | None
) -> tuple[Path, Mapping[str, Any]]:
    """The file that says how pictures are prepared, and its table; the older one counts more.

    Args:
        directory: The checkpoint.
        otherwise: The table where there is no such file; None: there must be one.
    """
    found: dict[str, Any] = {}
    where = None
    for name in (_PROCESSOR, _PREPROCESSOR):
        path = directory / name
        if not path.exists():
            continue
        table: Any = read_json(path)
        if name == _PROCESSOR:
            table = table.get("image_processor")
        if isinstance(table, dict) and table:
            found, where = {**found, **table}, path
    if where is None and otherwise is not None:
        return directory, otherwise
    if where is None:
        raise CheckpointError(
            f"{directory} holds no {_PREPROCESSOR}, which says how pictures are prepared."
        )
    return where, found
