"""``import awq_edge`` stays light: a device starts quickly and needs no workstation package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"jinja2", "numpy", "psutil", "rich", "tokenizers", "torch", "transformers", "typer"}
WORKSTATION = {"gguf", "huggingface_hub", "safetensors", "sentencepiece", "torch", "transformers"}


def loaded_packages(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nimport json\nprint(json.dumps(list(sys.modules)), end='')"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    ).stdout
    return {name.partition(".")[0] for name in json.loads(output.splitlines()[-1])}


@pytest.mark.parametrize("statement", ["import awq_edge", "from awq_edge import Model"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_packages(statement) & HEAVY


def test_command_line_needs_no_workstation_package() -> None:
    assert not loaded_packages("import awq_edge.cli.main") & WORKSTATION


def test_generating_text_needs_no_workstation_package(stories_path: object) -> None:
    statement = (
        "from awq_edge import Model\n"
        f"with Model.open({str(stories_path)!r}) as model: model.generate('a', max_tokens=2).text()"
    )
    # numpy takes as long to load as a small model takes to answer.
    assert not loaded_packages(statement) & (WORKSTATION | {"typer", "rich", "numpy"})


def test_public_names() -> None:
    import awq_edge

    for name in awq_edge.__all__:
        assert hasattr(awq_edge, name)
