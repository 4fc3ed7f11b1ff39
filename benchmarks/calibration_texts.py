"""The calibration texts that ship, kind by kind: written here, generated, or public domain.

    python benchmarks/calibration_texts.py

Writes ``awq_edge/calibration/texts/KIND.txt.xz``. Prose, which lies there already, are pages
of novels in the public domain; encyclopaedic paragraphs, dialogues and other
languages were written for the project; code and documents are the project's own; arithmetic,
records and a part of the questions come from a seeded generator here.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).with_name("calibration")
TARGET = ROOT / "awq_edge/calibration/texts"
CODE = (
    "awq_edge/quantize/grouped.py",
    "awq_edge/limited_json.py",
    "awq_edge/generation.py",
    "awq_edge/checkpoints/safetensors_file.py",
    "awq_edge/device/ssh.py",
    "native/runtime/forward.cpp",
    "native/runtime/thread_pool.cpp",
    "native/kernels/gemv/gemv_neon.h",
    "native/format/gguf_reader.cpp",
    "examples/embed_c/generate.c",
    "CMakeLists.txt",
    "Makefile",
    "tests/python/test_layouts.py",
    "awq_edge/device/install.sh",
)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "native/ARITHMETIC.md",
    "native/format/FORMAT.md",
    "native/README.md",
    "docs/layers.md",
    "docs/raspberry-pi.md",
)
WORDS = (
    "apple river stone window garden winter copper letter candle harbour meadow engine mirror "
    "thunder basket feather island marble orchard pencil silver timber velvet whistle ladder "
    "kettle lantern"
).split()
NAMES = (
    "Ada Bruno Chiara Deniz Elif Farid Greta Hiro Ines Jonas Keiko Lena Mateo Nadia Omar Petra "
    "Quinn Rosa Sven Tomas Uma Viktor Wanda Xin Yara Zoe"
).split()
CITIES = (
    "Lisbon Oslo Cairo Lima Quito Dakar Hanoi Perth Turin Ghent Bergen Kyoto Accra Malmo Leeds "
    "Porto"
).split()


def arithmetic(dice: random.Random) -> Iterator[str]:
    """Problems in figures and words, worked out."""
    for _ in range(90):
        a, b, c = dice.randint(2, 999), dice.randint(2, 99), dice.randint(2, 12)
        yield dice.choice(
            [
                f"{a} + {b} = {a + b}",
                f"{a} - {b} = {a - b}",
                f"{a} * {c} = {a * c}",
                f"{a * c} / {c} = {a}",
                f"{b}^2 = {b * b}",
                f"({a} + {b}) * {c} = {a + b} * {c} = {(a + b) * c}",
                f"{a} mod {c} = {a % c}",
                f"{b}% of {100 * c} = {b * c}",
                f"{a / 100:.2f} + {b / 10:.1f} = {a / 100 + b / 10:.2f}",
            ]
        )
    for _ in range(34):
        name, other = dice.sample(NAMES, 2)
        thing = dice.choice(WORDS) + "s"
        n, m, price = dice.randint(3, 40), dice.randint(2, 20), dice.randint(2, 15)
        kind = dice.randrange(4)
        if kind == 0:
            yield (
                f"Question: {name} has {n} {thing} and {other} gives {name} {m} more. Each of "
                f"them costs {price} dollars. How much are all of them worth?\nAnswer: {name} has "
                f"{n} + {m} = {n + m} {thing}. They are worth "
                f"{n + m} * {price} = {(n + m) * price} dollars. "
                f"The answer is {(n + m) * price}."
            )
        elif kind == 1:
            yield (
                f"Question: A box holds {m} {thing}. How many boxes does {name} need for "
                f"{n * m + 1} {thing}?\nAnswer: {n * m + 1} / {m} is {n} with a remainder of 1, so "
                f"{name} needs {n} + 1 = {n + 1} boxes. The answer is {n + 1}."
            )
        elif kind == 2:
            speed = 5 * dice.randint(6, 24)
            yield (
                f"Question: {name} drives from {dice.choice(CITIES)} at {speed} km/h for {m} "
                f"hours, rests, and drives {n} km more. How far is that?\nAnswer: {speed} * {m} = "
                f"{speed * m} km, and {speed * m} + {n} = {speed * m + n} km. "
                f"The answer is {speed * m + n}."
            )
        else:
            x = dice.randint(-9, 9)
            yield (
                f"Solve {price}x + {n} = {price * x + n}. Subtract {n}: {price}x = {price * x}. "
                f"Divide by {price}: x = {x}."
            )


def records(dice: random.Random) -> Iterator[str]:
    """JSON, tables, lists, logs, settings and markup."""

    def person() -> dict[str, object]:
        return {
            "id": dice.randint(1000, 99999),
            "name": dice.choice(NAMES),
            "city": dice.choice(CITIES),
            "active": dice.random() < 0.6,
            "score": round(dice.uniform(0, 100), 2),
            "tags": dice.sample(WORDS, dice.randint(0, 3)),
            "address": None if dice.random() < 0.3 else {"zip": f"{dice.randint(10000, 99999)}"},
        }

    for number in range(44):
        kind = number % 9
        if kind == 0:
            yield json.dumps([person() for _ in range(3)], indent=2)
        elif kind == 1:
            yield "\n".join(json.dumps(person()) for _ in range(5))
        elif kind == 2:
            rows = [
                f"{dice.choice(NAMES)},{dice.choice(CITIES)},{dice.randint(18, 80)},"
                f"{dice.uniform(1e3, 9e4):.2f}"
                for _ in range(8)
            ]
            yield "\n".join(["name,city,age,income", *rows])
        elif kind == 3:
            rows = [
                f"| {dice.choice(WORDS)} | {dice.randint(1, 500)} | {dice.uniform(0, 9):.1f} % |"
                for _ in range(6)
            ]
            yield "\n".join(["| item | count | share |", "|---|---|---|", *rows])
        elif kind == 4:
            yield "\n".join(
                f"2024-{dice.randint(1, 12):02}-{dice.randint(1, 28):02} {dice.randint(0, 23):02}:"
                f"{dice.randint(0, 59):02}:{dice.randint(0, 59):02} "
                f"{dice.choice(('INFO', 'WARNING', 'ERROR', 'DEBUG'))} [{dice.choice(WORDS)}] "
                f"{dice.choice(('request', 'timeout', 'retry', 'connected', 'closed'))} "
                f"id={dice.getrandbits(32):08x} ms={dice.randint(1, 900)}"
                for _ in range(7)
            )
        elif kind == 5:
            things = dice.sample(WORDS, 6)
            yield "Shopping list\n" + "\n".join(f"- {dice.randint(1, 9)} {x}s" for x in things)
        elif kind == 6:
            section = dice.choice(WORDS)
            yield f'[{section}]\nname = "{dice.choice(NAMES).lower()}"\nport = ' + (
                f"{dice.randint(1024, 65535)}\ndebug = {dice.choice(('true', 'false'))}\n"
                f'paths = ["/srv/{dice.choice(WORDS)}", "/var/{dice.choice(WORDS)}"]\n'
                f"timeout = {dice.uniform(0.1, 30):.1f}"
            )
        elif kind == 7:
            items = "\n".join(
                f'    <li class="{dice.choice(WORDS)}"><a href="/{dice.choice(WORDS)}/'
                f'{dice.randint(1, 99)}">{dice.choice(NAMES)}</a></li>'
                for _ in range(4)
            )
            yield f'<div id="{dice.choice(WORDS)}">\n  <ul>\n{items}\n  </ul>\n</div>'
        else:
            table, column = dice.choice(WORDS), dice.choice(WORDS)
            yield (
                f"SELECT {column}, COUNT(*) AS n, AVG(price) FROM {table}s\n"
                f"WHERE city = '{dice.choice(CITIES)}' AND age BETWEEN {dice.randint(18, 30)} AND "
                f"{dice.randint(40, 90)}\nGROUP BY {column} HAVING n > {dice.randint(2, 50)} "
                f"ORDER BY n DESC LIMIT {dice.randint(5, 100)};"
            )


def spaced(text: str, dice: random.Random) -> str:
    """Paragraphs as corpora hold them whose words were taken apart: blanks around every mark."""
    counts = Counter(re.findall(r"\w+", text))
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) < 60 and "." not in paragraph:
            paragraphs.append(f" = {paragraph} = ")
            continue
        paragraph = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", paragraph)
        paragraph = re.sub(r"(?<=\d),(?=\d)", " @,@ ", paragraph)
        paragraph = re.sub(r"(?<=\d)\.(?=\d)", " @.@ ", paragraph)
        paragraph = re.sub(r"([,;:?!()\"])", r" \1 ", paragraph)
        paragraph = re.sub(r"(?<![@A-Z])\.(?= |$)", " .", paragraph)
        paragraph = re.sub(r"(?<=\w)('s|')", r" \1", paragraph)
        words = [
            "<unk>"
            if counts[word] == 1 and word[:1].isupper() and word.isalpha() and dice.random() < 0.5
            else word
            for word in paragraph.split()
        ]
        paragraphs.append(f" {' '.join(words)} ")
    return "\n \n".join(paragraphs)


def kinds() -> dict[str, str]:
    """Every text but prose by its kind; code and documents as they are today."""
    dice = random.Random(21)
    articles = (SOURCES / "encyclopaedia.txt").read_text(encoding="utf-8").strip()
    return {
        "encyclopaedia": f"{articles}\n\n{spaced(articles, dice)}",
        "documents": "\n\n".join((ROOT / name).read_text("utf-8")[:16000] for name in DOCUMENTS),
        "code": "\n\n".join((ROOT / name).read_text("utf-8")[:9000] for name in CODE),
        "arithmetic": "\n\n".join(arithmetic(dice)),
        "dialogues": (SOURCES / "dialogues.txt").read_text(encoding="utf-8").strip(),
        "records": "\n\n".join(records(dice)),
        "languages": (SOURCES / "languages.txt").read_text(encoding="utf-8").strip(),
    }


def main() -> None:
    """Writes every text."""
    TARGET.mkdir(exist_ok=True)
    for kind, text in kinds().items():
        path = TARGET / f"{kind}.txt.xz"
        path.write_bytes(lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))
        print(f"{kind}: {len(text.encode('utf-8'))} bytes, {path.stat().st_size} compressed")


if __name__ == "__main__":
    main()
