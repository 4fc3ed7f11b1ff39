"""Random conversations with and without kept contexts: is every text the same, to the letter.

Conversations begin alike, go on, branch off earlier turns and are computed several at a time by an
engine that is stopped and started again, so that contexts come from live texts, from ended ones
and from files. Some files are damaged between two starts. Every text is compared with the same
conversation in a fresh session that keeps nothing.

    python benchmarks/serve_conversations.py tests/data/stories260k.awq.gguf --conversations 1000

Prints how many texts differ, how many tokens of the prompts were read and how many were there.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import threading
from pathlib import Path

from awq_edge import GenerationConfig, Model
from awq_edge.serve.engine import Engine
from awq_edge.serve.stored_contexts import StoredContexts
from awq_edge.serve.texts import Event, Failed, Piece, Text

WORDS = (
    "the cat",
    "a red ball",
    "once more",
    "they ran home",
    "it was fun",
    "said Tom",
    "and then",
)
BEGINNING = "Once upon a time there was a girl who had a red ball and a blue box. " * 3
TOGETHER = 40  # conversations between two starts of the engine


class Listener:
    """Collects a text."""

    def __init__(self) -> None:
        """Has heard nothing."""
        self.text = ""
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        """Is told of a piece, or of the end."""
        if isinstance(event, Piece):
            self.text += event.text
            return
        if isinstance(event, Failed):
            self.text += f" [{event.error}]"
        self.ended.set()


def plan(model: Model, count: int, seed: int) -> list[tuple[list[int], GenerationConfig]]:
    """Prompts, each of which begins like an earlier one."""
    random_ = random.Random(seed)
    longest = model.context_length - 16
    pasts = [model.tokenize(BEGINNING), model.tokenize("The " + BEGINNING)]
    planned = []
    for number in range(count):
        past = random_.choice(pasts[-60:] if random_.random() < 0.8 else pasts)
        cut = random_.randint(len(past) // 2, len(past))
        said = " ".join(random_.choice(WORDS) for _ in range(random_.randint(1, 12)))
        prompt = [*past[:cut], *model.tokenize(said, add_bos=False)][:longest]
        pasts.append(prompt)
        temperature = random_.choice([0.0, 0.7, 1.0])
        planned.append(
            (prompt, GenerationConfig(seed=number, max_tokens=6, temperature=temperature))
        )
    return planned


def damage(folder: Path, random_: random.Random) -> None:
    """Changes a byte of some file, or cuts it off."""
    paths = sorted(folder.glob("*.context"))
    if not paths:
        return
    path = random_.choice(paths)
    data = bytearray(path.read_bytes())
    if random_.random() < 0.3:
        del data[len(data) // 2 :]
    else:
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    path.write_bytes(data)


def main() -> int:
    """Runs the comparison; fails if a text differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--lookup", action="store_true", help="guess ahead too")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # of the files that are damaged
    random_ = random.Random(asked.seed)
    different = read = reused = from_files = 0
    with (
        Model.open(asked.file, threads=1, lookup=asked.lookup) as model,
        Model.open(asked.file, threads=1) as plain,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        planned = plan(model, asked.conversations, asked.seed)
        for begin in range(0, len(planned), TOGETHER):
            part = planned[begin : begin + TOGETHER]
            stored = StoredContexts(folder, 4 << 20)
            engine = Engine(parallel=3, most_waiting=TOGETHER, stored=stored)
            texts = [
                Text(model, str(i % 3), prompt, config, Listener())
                for i, (prompt, config) in enumerate(part)
            ]
            engine.submit(texts)
            for text, (prompt, config) in zip(texts, part):
                listener = text.listener
                assert isinstance(listener, Listener)
                listener.ended.wait()
                with plain.session() as session:
                    different += session.generate(prompt, config).text() != listener.text
            read += engine.counts.read_tokens
            reused += engine.counts.reused_tokens
            from_files += stored.read_count
            engine.stop(10)
            if random_.random() < 0.5:
                damage(folder, random_)
        right = model.speculation.right if model.speculation else 0
    print(f"{asked.conversations} conversations, {different} texts differ")
    print(f"{read} tokens of prompts read, {reused} were there, {from_files} files read")
    if asked.lookup:
        print(f"{right} guessed tokens were right")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
