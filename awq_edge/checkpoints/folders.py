"""A checkpoint whose parts lie in folders of their own, put together as one.

Owns that every part is there: its config.json becomes a table of the whole's, and its tensors have
the folder's name in front of their own. Refuses to know what the parts are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.json_files import read_json
from awq_edge.checkpoints.resolver import find_tensors
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.errors import CheckpointError


def put_together(
    directory: Path, config: Mapping[str, Any], folders: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The configuration and the tensors of the whole.

    Args:
        directory: Where the folders lie.
        config: Its config.json.
        folders: Of each part, and the table that its config.json becomes.

    Raises:
        CheckpointError: A folder is missing, or one of its files.
    """
    missing = [folder for folder in folders if not (directory / folder / "config.json").is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} is a {config.get('model_type')}, whose parts lie in the folders "
            f"{', '.join(folders)}; {missing[0]}/config.json is missing: download them all, or use "
            "a LLaVA of the type llava, if it is one."
        )
    whole, tensors = dict(config), {}
    for folder, table in folders.items():
        whole[table] = read_json(directory / folder / "config.json")
        for name, tensor in find_tensors(directory / folder).items():
            tensors[f"{folder}.{name}"] = tensor
    return whole, tensors
