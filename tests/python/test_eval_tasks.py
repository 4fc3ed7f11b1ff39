"""Tasks: generated code is confined, answers are judged rightly, and scores are the model's."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import STORIES, Command

from awq_edge import Model, text_files
from awq_edge.accuracy import local_tasks
from awq_edge.accuracy.task_models import FloatTaskModel, PackedTaskModel, chat_prompt
from awq_edge.errors import AwqEdgeError, CheckpointError, InvalidArgumentError, UnsupportedError
from awq_edge.tokenizer import Tokenizer

linux = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")

# ---- judging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "strict", "last"),
    [
        ("She has 3 + 4 = 7.\n#### 7", "7", "7"),
        ("So it is $1,234.50 in all.", None, "1234.50"),
        ("#### 1,000", "1000", "1000"),
        ("The answer is -5.", None, "-5"),
        ("12 apples, then 15.00 dollars", None, "15"),
        ("no number", None, None),
    ],
)
def test_numbers_are_found(text: str, strict: str | None, last: str | None) -> None:
    assert local_tasks.strict_number(text) == strict
    assert local_tasks.last_number(text) == last


@pytest.mark.parametrize(
    "answer",
    [
        "def f():\n    return 1\n[DONE]\nmore",
        "```python\ndef f():\n    return 1\n```\nThat is it.",
        "Here:\n```\ndef f():\n    return 1\n",
    ],
)
def test_code_is_taken_out_of_its_wrapping(answer: str) -> None:
    namespace: dict[str, Any] = {}
    exec(local_tasks.code_block(answer), namespace)
    assert namespace["f"]() == 1


class Oracle:
    """Knows the answers: continues a prompt by what a table says, and has no opinion else."""

    context_length = 100_000
    metadata: dict[str, Any] = {}  # noqa: RUF012  (an empty table is never changed)

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.prompts: list[str] = []
        self.tokenizer: Any = self
        self.bos_token_id, self.eos_token_ids, self.add_bos_token = 0, (), False
        self.vocabulary_size = 0x110000

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        return [ord(letter) for letter in text]

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        raise AssertionError("these tasks only continue texts")

    def generate(
        self, tokens: Sequence[int], stop: Sequence[str], max_tokens: int, temperature: float
    ) -> str:
        prompt = "".join(map(chr, tokens))
        self.prompts.append(prompt)
        assert temperature == 0.0
        assert stop
        return next(answer for end, answer in self.answers.items() if prompt.endswith(end))


def write_lines(path: Path, documents: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Small files in the forms of the three tasks."""
    write_lines(
        tmp_path / "gsm8k_test.jsonl",
        [{"question": f"{n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(9)],
    )
    write_lines(
        tmp_path / "mbpp.jsonl",
        [
            {
                "task_id": number,
                "text": f"Write a function that adds {number}.",
                "code": f"def add(x):\r\n    return x + {number}",
                "test_setup_code": "",
                "test_list": [f"assert add({x}) == {x + number}" for x in range(3)],
            }
            for number in range(1, 15)
        ],
    )
    write_lines(
        tmp_path / "HumanEval.jsonl",
        [
            {
                "task_id": f"HumanEval/{n}",
                "prompt": f"def times_{n}(x):\n",
                "canonical_solution": f"    return x * {n}\n",
                "entry_point": f"times_{n}",
                "test": f"def check(candidate):\n    assert candidate(3) == {3 * n}\n",
            }
            for n in range(4)
        ],
    )
    return tmp_path


def figures(results: Sequence[Any]) -> dict[tuple[str, str], float]:
    return {(result.task, result.metric): result.value for result in results}


@linux
def test_right_answers_score_one_and_wrong_ones_zero(problems: Path) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.tasks import run_tasks

    right = {f"Question: {n} + {n}?\nAnswer:": f" {n} and {n}.\n#### {2 * n}" for n in range(9)}
    right |= {
        f"adds {number}. Your code should pass these tests:\n\n"
        + "\n".join(f"assert add({x}) == {x + number}" for x in range(3))
        + "\n[BEGIN]\n": f"def add(x):\n    return x + {number}\n[DONE]"
        for number in range(1, 15)
    }
    right |= {f"def times_{n}(x):\n": f"    return x * {n}" for n in range(4)}
    wrong = {
        "Answer:": " It is 3.\n#### 3",
        "[BEGIN]\n": "def add(x):\n    return -1",
        "(x):\n": "    raise SystemExit(0)",
    }
    names = ["gsm8k", "mbpp", "humaneval"]
    oracle = Oracle(right)
    results = run_tasks(oracle, "oracle", names, data=problems)
    assert figures(results) == {
        ("gsm8k", "exact_match"): 1.0,
        ("gsm8k", "exact_match_last_number"): 1.0,
        ("mbpp", "pass@1"): 1.0,
        ("humaneval", "pass@1"): 1.0,
    }
    assert {result.task: result.problems for result in results} == {
        "gsm8k": 4,  # nine, of which five are examples
        "mbpp": 4,  # numbers 11 to 14
        "humaneval": 4,
    }
    # The examples stand before the question, and are none of the problems.
    arithmetic = [prompt for prompt in oracle.prompts if "Question:" in prompt]
    assert all(prompt.count("####") == 5 for prompt in arithmetic)
    assert all(prompt.startswith("Question: 0 + 0?\nAnswer: It is 0.") for prompt in arithmetic)
    assert set(figures(run_tasks(Oracle(wrong), "x", names, data=problems)).values()) == {0.0}


@linux
def test_the_published_solutions_pass(assets: Path) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.tasks import run_tasks

    with gzip.open(assets / "text/eval/HumanEval.jsonl.gz", "rt") as file:
        answers = {line["prompt"]: line["canonical_solution"] for line in map(json.loads, file)}
    data = assets / "text/eval"
    for line in map(json.loads, (data / "mbpp.jsonl").read_text().splitlines()):
        answers["\n".join(line["test_list"][:3]) + "\n[BEGIN]\n"] = line["code"]
    results = run_tasks(Oracle(answers), "oracle", ["humaneval", "mbpp"], data=data, limit=12)
    assert figures(results) == {("humaneval", "pass@1"): 1.0, ("mbpp", "pass@1"): 1.0}


@pytest.mark.parametrize("fault", ["missing", "broken", "foreign", "empty"])
def test_bad_task_files_are_one_sentence(fault: str, problems: Path) -> None:
    pytest.importorskip("lm_eval")
    path = problems / "HumanEval.jsonl"
    if fault == "missing":
        path.unlink()
    else:
        path.write_text({"broken": "{", "foreign": '{"a": 1}\n', "empty": ""}[fault])
    with pytest.raises(AwqEdgeError, match="HumanEval"):
        task = local_tasks.make_task("humaneval", problems)
        task.doc_to_text(task.eval_docs[0])


# ---- scores -------------------------------------------------------------------------------------


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=argument) for argument in arguments]


def plain_score(model: Model, known: list[int], new: list[int]) -> tuple[float, bool]:
    logits = model.logits((known + new)[:-1]).astype(np.float64)[len(known) - 1 :]
    total = 0.0
    for row, target in zip(logits, new):
        total += row[target] - math.log(sum(math.exp(x - row.max()) for x in row)) - row.max()
    return total, [int(row.argmax()) for row in logits] == new


def test_log_likelihoods_are_the_models(stories: Model) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.harness_model import HarnessModel

    pairs = [
        ("Once upon a time, there was a little", " girl named Lily."),
        ("Once upon a time, there was a little", " dog."),
        ("Once upon a time, there was a little ", "boy."),  # the space belongs to the word
        ("", "Once upon a time"),
    ]
    shares: list[float] = []
    lm = HarnessModel(PackedTaskModel(stories), "stories", shares.append)
    got = lm.loglikelihood(requests(*pairs))
    assert math.isclose(sum(shares), 1.0)
    with Model.open(STORIES) as other:
        for (context, continuation), (total, greedy) in zip(pairs, got):
            tokens = other.tokenize(context + continuation)
            known = other.tokenize(context.rstrip(" "))
            expected = plain_score(other, known, tokens[len(known) :])
            assert math.isclose(total, expected[0], rel_tol=1e-9)
            assert greedy == expected[1]


def test_a_whole_text_is_scored_token_by_token_once(stories: Model) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.harness_model import HarnessModel

    text = "Lily saw a big red ball. She was happy. " * 5
    model = PackedTaskModel(stories)
    (whole,) = HarnessModel(model, "stories").loglikelihood_rolling(requests((text,)))
    tokens = stories.tokenize(text, add_bos=False)
    bos = stories.tokenizer.bos_token_id
    assert bos is not None
    assert math.isclose(whole, plain_score(stories, [bos], tokens)[0], rel_tol=1e-9)
    # With a short context the windows still score every token, with less before it.
    model.context_length = 32
    (windowed,) = HarnessModel(model, "stories").loglikelihood_rolling(requests((text,)))
    assert windowed < 0
    assert not math.isclose(windowed, whole, rel_tol=1e-6)


def test_too_long_a_prompt_is_cut_on_the_left(stories: Model) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.harness_model import HarnessModel

    model = PackedTaskModel(stories)
    model.context_length = 40
    context = "The cat sat. " * 40 + "Once upon a time, there was"
    ((total, _),) = HarnessModel(model, "stories").loglikelihood(requests((context, " a dog.")))
    known = stories.tokenize(context)
    new = stories.tokenize(context + " a dog.")[len(known) :]
    kept = [known[0], *known[len(known) - (40 - len(new)) :]]  # BOS stays
    assert len(kept) + len(new) - 1 == 40
    assert math.isclose(total, plain_score(stories, kept, new)[0], rel_tol=1e-9)


def test_continuations_stop_where_they_should(stories: Model) -> None:
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.harness_model import HarnessModel

    lm = HarnessModel(PackedTaskModel(stories), "stories")
    settings = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    (text,) = lm.generate_until(requests(("Once upon a time", settings)))
    expected = stories.generate("Once upon a time", temperature=0.0, max_tokens=40).text()
    assert text
    assert text == expected.split(".")[0]


def test_chat_prompts_begin_as_their_template_says(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No BOS where the template writes none, although the model's plain prompts begin with it."""
    pytest.importorskip("lm_eval")
    from awq_edge.accuracy.harness_model import HarnessModel

    model = PackedTaskModel(stories)
    model.metadata = {**stories.metadata, "tokenizer.chat_template": "{{ messages[0].content }}"}
    asked: list[list[int]] = []
    monkeypatch.setattr(
        model, "generate", lambda tokens, *_: asked.append(list(tokens)) or "", raising=True
    )
    lm = HarnessModel(model, "stories")
    settings = {"until": ["."], "max_gen_toks": 4}
    lm.generate_until(requests(("Once", settings)))
    prompt = lm.apply_chat_template([{"role": "user", "content": "Once"}])
    lm.generate_until(requests((prompt, settings)))
    chat = stories.tokenize("Once", add_bos=False)
    assert asked == [[stories.tokenizer.bos_token_id, *chat], chat]


def test_float_and_packed_models_continue_alike(assets: Path) -> None:
    """At 8 bits greedy choices of so short a text agree."""
    pytest.importorskip("torch")
    from awq_edge.cli._evaluated import open_task_model
    from awq_edge.cli._groups import Running

    with (
        open_task_model(assets / "models/stories260k", running=Running()) as floats,
        open_task_model(STORIES, running=Running()) as packed,
    ):
        tokens = floats.tokenizer.encode("Once upon a time, there was a")
        assert tokens == packed.tokenizer.encode("Once upon a time, there was a")
        first = floats.generate(tokens, ["."], 12, 0.0)
        assert first
        assert "." not in first
        assert first.split()[0] == packed.generate(tokens, ["."], 12, 0.0).split()[0]
        with pytest.raises(UnsupportedError, match="greedily"):
            floats.generate(tokens, ["."], 12, 0.7)


def test_chat_prompts_need_a_template(stories: Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(InvalidArgumentError, match="chat template"):
        chat_prompt(PackedTaskModel(stories), messages)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    model = FloatTaskModel(
        SimpleNamespace(vocabulary_size=512),  # type: ignore[arg-type]  # never asked for logits
        Tokenizer(stories.metadata["tokenizer.huggingface.json"]),  # type: ignore[arg-type]
        64,
        {"tokenizer.chat_template": template},
    )
    assert chat_prompt(model, messages) == "<user>Hello"


# ---- the command --------------------------------------------------------------------------------


@linux
def test_the_command_prints_figures(command: Command, problems: Path) -> None:
    pytest.importorskip("lm_eval")
    result = command(
        "eval", "tasks", STORIES, "--tasks", "gsm8k", "--tasks", "humaneval", "--data", problems,
        "--limit", 2, "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "git" not in result.err
    results = json.loads(result.out)["results"]
    assert [entry["task"] for entry in results] == ["gsm8k", "gsm8k", "humaneval"]
    assert all(entry["problems"] == 2 and 0 <= entry["value"] <= 1 for entry in results)


@linux
def test_one_problem_has_no_standard_error(command: Command, problems: Path) -> None:
    pytest.importorskip("lm_eval")
    result = command(
        "eval", "tasks", STORIES, "--tasks", "humaneval", "--data", problems, "--limit", 1,
        "--json",
    )  # fmt: skip
    (entry,) = json.loads(result.out, parse_constant=pytest.fail)["results"]
    assert entry["problems"] == 1
    assert entry["standard_error"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "gsm8k"), "--data"),
        (("--tasks", "nonsense"), "no task 'nonsense'"),
        (("--tasks", "mbpp", "--data", "/nowhere"), "mbpp.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], words: str, command: Command
) -> None:
    pytest.importorskip("lm_eval")
    command("eval", "tasks", STORIES, *arguments).assert_one_sentence(words)


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "no answer": ("gsm8k", b'{"question": "2?", "answer": "two"}', "no number behind ####"),
    "an answer that is no text": ("gsm8k", b'{"question": "2?", "answer": 2}', "no 'answer'"),
    "deep": ("gsm8k", b'{"question": ' + b"[" * 100_000, "nested too deeply"),
    "a list": ("gsm8k", b"[1]", "holds no problems"),
    "nothing": ("gsm8k", b"\n\n", "holds no problems"),
    "no UTF-8": ("gsm8k", b'{"question": "\xff"}', "no file of JSON lines"),
    "no tests": (
        "mbpp",
        b'{"task_id": 2, "text": "", "code": "", "test_setup_code": "", "test_list": [" "]}',
        "has no tests",
    ),
    "tests that are no texts": (
        "mbpp",
        b'{"task_id": 2, "text": "", "code": "", "test_setup_code": "", "test_list": [1]}',
        "no 'test_list'",
    ),
    "examples that are missing": (
        "mbpp",
        b'{"task_id": 2, "text": "", "code": "", "test_setup_code": "", "test_list": ["1"]}',
        "lacks the problems 3, 4",
    ),
    "no entry point": ("humaneval", b'{"prompt": "", "test": ""}', "no 'canonical_solution'"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_problems_that_judge_nothing_are_refused(damage: str, problems: Path) -> None:
    """A task without an answer or a test would count every text, or none at all, as right."""
    pytest.importorskip("lm_eval")
    task, content, words = DAMAGED[damage]
    names = {"gsm8k": "gsm8k_test.jsonl", "mbpp": "mbpp.jsonl", "humaneval": "HumanEval.jsonl"}
    (problems / names[task]).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        local_tasks.make_task(task, problems)


@pytest.mark.parametrize("damage", ["cut", "flipped", "bomb", "no gzip"])
def test_a_damaged_archive_of_problems_is_one_sentence(
    damage: str, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    path = problems / "gsm8k_test.jsonl"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    middle = len(whole) // 2
    contents = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes(255 - byte for byte in whole[middle:]),
        "bomb": gzip.compress(b"\n" * (2 << 20)),
        "no gzip": b"{}",
    }
    path.with_name(f"{path.name}.gz").write_bytes(contents[damage])
    monkeypatch.setattr(text_files.read_compressed, "__defaults__", (1 << 20,))
    words = "has no end" if damage == "bomb" else "no file of JSON lines"
    with pytest.raises(AwqEdgeError, match=words):
        local_tasks.make_task("gsm8k", problems)


def test_the_missing_extra_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError(name='lm_eval')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = command(
        "eval", "tasks", STORIES, "--tasks", "gsm8k", "--data", tmp_path,
        environment={"PYTHONPATH": path},
    )  # fmt: skip
    result.assert_one_sentence("lm_eval", "awq-edge[eval]")
