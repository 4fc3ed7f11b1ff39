"""Documents stay true: links and paths that they name exist, and generated pages are current.

Without an argument it writes ``docs/cli.md`` from the commands themselves and ``docs/families.md``
(``families_page.py``); with ``--check`` it only compares. Refuses to judge prose.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import families_page
import typer.main

from awq_edge.cli.main import application

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "cli.md"
FAMILIES = ROOT / "docs" / "families.md"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE_PATH = re.compile(
    r"`((?:awq_edge|converters|native|targets|examples|tests|benchmarks|docs)/[\w./*-]+)`"
)


def command_reference() -> str:
    """The options of every command as Markdown, from the command line's own definitions."""
    lines = [
        "# Commands",
        "",
        "Generated from the commands themselves by `make docs`.",
    ]
    root = typer.main.get_command(application())
    commands = [(f"awq-edge {name}", command) for name, command in _leaves(root)]
    for name, command in commands:
        usage = [name]
        arguments, options = [], []
        for parameter in command.params:
            (arguments if parameter.param_type_name == "argument" else options).append(parameter)
        usage += [_argument_name(argument) for argument in arguments]
        lines += ["", f"## {name}", "", (command.help or "").strip(), ""]
        lines += ["```", " ".join(usage) + " [OPTIONS]", "```", ""]
        rows = [
            (_argument_name(argument), getattr(argument, "help", "") or "")
            for argument in arguments
        ]
        for option in options:
            if option.name == "help" or getattr(option, "hidden", False):
                continue
            default = option.default
            shown = (
                ""
                if default is None or default is False or default == () or callable(default)
                else f" Default: {getattr(default, 'value', default)}."
            )
            rows.append((", ".join(option.opts), (option.help or "") + shown))
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {' '.join(text.split())} |" for name, text in rows]
    return "\n".join(lines) + "\n"


def _leaves(group: typer.core.TyperGroup, prefix: str = "") -> list:
    found = []
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            found += _leaves(command, f"{prefix}{name} ")
        else:
            found.append((prefix + name, command))
    return found


def _argument_name(argument: typer.core.TyperArgument) -> str:
    return argument.metavar or (argument.name or "").upper()


def missing_paths() -> list[str]:
    """Links and code paths in the documents that lead nowhere."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    problems = [] if "README.md" in listed else ["git does not list README.md: nothing was read"]
    for name in listed:
        document = ROOT / name
        if not document.exists():
            problems.append(f"{name} is listed by git and is not there")
            continue
        text = document.read_text(encoding="utf-8")
        for target in LINK.findall(text):
            if "://" not in target and not (document.parent / target).exists():
                problems.append(f"{name}: the link {target} leads nowhere")
        for target in CODE_PATH.findall(text):
            if not list(ROOT.glob(target.rstrip("/"))):
                problems.append(f"{name}: there is no {target}")
    return problems


def main() -> int:
    """Check, and write the reference unless told only to check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check_only = parser.parse_args().check
    unlisted = families_page.unlisted()
    if unlisted:
        print(f"docs/families.toml has no family for {', '.join(unlisted)}", file=sys.stderr)
        return 1
    generated = {REFERENCE: command_reference(), FAMILIES: families_page.page()}
    if not check_only:
        REFERENCE.parent.mkdir(exist_ok=True)
        for place, text in generated.items():
            place.write_text(text, encoding="utf-8")
    problems = missing_paths()
    for place, text in generated.items():
        current = place.read_text(encoding="utf-8") if place.exists() else ""
        if current != text:
            problems.append(f"docs/{place.name} is older than what it is made of: run make docs")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
