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


# ---- what a command loads before it can answer: on a board each of these takes its time ----------

CLI = {"", "cli", "cli._errors", "cli._interrupt", "cli._streams", "cli.main", "cli.start"}
TEXT = {"errors", "terminal_text"}
NATIVE = {"", ".library", ".machine", ".metadata", ".model", ".options", ".sampler", ".session"}
SHOWING = CLI | TEXT | {"cli._options", "cli._output", "quantities"}
LOADED = {
    "--version": {"", "cli", "cli._streams", "cli.start"},
    "doctor": {
        *SHOWING,
        *(f"_native{name}" for name in NATIVE),
        *("_declarations", "cli.doctor", "device", "device.board", "device.doctor"),
        *("device.gpu_sensors", "free_memory", "unreadable_files"),
    },
    "run": {
        *SHOWING,
        *(f"_native{name}" for name in NATIVE),
        *("_declarations", "adjustment", "cli._groups", "cli._guesses_text", "cli._pictures"),
        *("cli._prompt_text", "cli.run", "free_memory", "generation", "limited_json", "model"),
        *("session", "thread_counts", "token_ids", "tokenizer", "tokenizers_library"),
        *("unreadable_files", "user_cache"),
    },
}
PACKAGES = {"--version": set(), "doctor": {"typer"}, "run": {"tokenizers", "typer"}}
# Each of them costs as much as reading a short prompt, and nothing before the first token needs it.
UNWANTED = {"email", "http", "multiprocessing", "numpy", "psutil", "rich", "secrets"} | {
    *("asyncio", "jinja2", "socket", "ssl", "tempfile", "unittest", "urllib.request", "xml")
}
COMMAND = """
import atexit, json, sys
sys.argv = ["awq-edge", *sys.argv[1:]]
atexit.register(lambda: print(json.dumps(list(sys.modules))))
from awq_edge.cli.start import start
start()
"""


@pytest.mark.parametrize("command", LOADED)
def test_a_command_loads_what_it_needs_and_no_more(command: str, stories_path: object) -> None:
    arguments = [command]
    if command == "run":
        arguments += [str(stories_path), "-p", "Once", "-n", "1", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, check=False, timeout=60
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    ours = {name.partition(".")[2] for name in loaded if name.partition(".")[0] == "awq_edge"}
    # A checkout that was never built as a wheel parses the header instead.
    assert ours | {"_declarations"} == LOADED[command] | {"_declarations"}
    others = {"cffi", "click", "jinja2", "numpy", "psutil", "rich", "tokenizers", "typer"}
    assert loaded & others == PACKAGES[command]
    assert not loaded & UNWANTED
