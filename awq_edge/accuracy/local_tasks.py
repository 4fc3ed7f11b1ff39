"""GSM8K, MBPP and HumanEval from files on this machine, as tasks of lm-evaluation-harness.

Owns their prompts, their examples, what counts as an answer and how it is judged. Prompts, stop
strings and the choice of test problems follow the tasks of the same names in the harness, so that
figures compare; only GSM8K differs, whose examples come from the beginning of the test file (they
are not scored), because a training file is not needed then. Code runs in ``code_runner.py``.

Files: gsm8k_test.jsonl, mbpp.jsonl, HumanEval.jsonl, each as its authors publish it, also with
.gz at the end.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from awq_edge.accuracy.code_runner import run_tests
from awq_edge.errors import (
    AwqEdgeError,
    CheckpointError,
    FileUnreadableError,
    InvalidArgumentError,
)
from awq_edge.limited_json import parse_json
from awq_edge.text_files import read_compressed, read_whole

_FILES = {"gsm8k": "gsm8k_test.jsonl", "mbpp": "mbpp.jsonl", "humaneval": "HumanEval.jsonl"}
NAMES = tuple(_FILES)
_FIELDS: dict[str, dict[str, type]] = {
    "gsm8k": {"question": str, "answer": str},
    "mbpp": {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list},
    "humaneval": dict.fromkeys(("prompt", "canonical_solution", "entry_point", "test"), str),
}

_GSM8K_EXAMPLES = 5
# The examples in the prompt and the problems that are scored, by the numbers in MBPP's own split.
_MBPP_EXAMPLES = (2, 3, 4)
_MBPP_SCORED = range(11, 511)

_LAST_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")

Document = Mapping[str, Any]


def make_task(name: str, data: Path) -> Any:
    """A task object that the harness evaluates.

    Args:
        name: One of NAMES.
        data: The folder with the files.

    Raises:
        FileUnreadableError: The file is missing.
        CheckpointError: It is not what its authors publish.
    """
    from lm_eval.api.task import (
        ConfigurableTask,
    )

    documents = _read(name, data)
    settings = {"gsm8k": _gsm8k, "mbpp": _mbpp, "humaneval": _humaneval}[name](documents)
    return ConfigurableTask(config={"task": name, "metadata": {"version": 1.0}, **settings})


def strict_number(text: str) -> str | None:
    """The number behind "####", without commas; the form that the examples teach."""
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return None if found is None else _plain(found.group(1))


def last_number(text: str) -> str | None:
    """The last number of a text, without commas and currency."""
    found = _LAST_NUMBER.findall(text)
    return _plain(found[-1]) if found else None


def code_block(text: str) -> str:
    """The code of an answer: up to the end mark, without a fence around it."""
    text = text.split("[DONE]")[0]
    fenced = re.search(r"```(?:python)?\n(.*?)(?:```|$)", text, re.DOTALL)
    return fenced.group(1) if fenced else text


def _gsm8k(documents: list[Document]) -> dict[str, Any]:
    def judge(document: Document, results: Sequence[str]) -> dict[str, float]:
        expected = strict_number(document["answer"])
        return {
            "exact_match": float(strict_number(results[0]) == expected),
            "exact_match_last_number": float(last_number(results[0]) == expected),
        }

    return {
        "output_type": "generate_until",
        "custom_dataset": _splits(documents[:_GSM8K_EXAMPLES], documents[_GSM8K_EXAMPLES:]),
        "test_split": "test",
        "fewshot_split": "examples",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": _GSM8K_EXAMPLES,
        "doc_to_text": lambda document: f"Question: {document['question']}\nAnswer:",
        "doc_to_target": lambda document: document["answer"],
        "process_results": judge,
        "metric_list": _means("exact_match", "exact_match_last_number"),
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "max_gen_toks": 256,
        },
    }


def _mbpp(documents: list[Document]) -> dict[str, Any]:
    by_number = {document["task_id"]: document for document in documents}
    absent = [str(number) for number in _MBPP_EXAMPLES if number not in by_number]
    if absent:
        raise CheckpointError(
            f"The file of mbpp lacks the problems {', '.join(absent)}, which are the examples in "
            "every prompt."
        )

    def judge(document: Document, results: Sequence[str]) -> dict[str, float]:
        names, imports = _published(document["code"])
        outcome = run_tests(
            code_block(results[0]),
            "\n".join([document["test_setup_code"], *document["test_list"]]),
            names,
            given=imports,
        )
        return {"pass@1": float(outcome.passed)}

    def prompt(document: Document) -> str:
        tests = "\n".join(document["test_list"][:3])
        return (
            f"You are an expert Python programmer, and here is your task: {document['text']} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )

    return {
        "output_type": "generate_until",
        "custom_dataset": _splits(
            [by_number[number] for number in _MBPP_EXAMPLES],
            [by_number[number] for number in _MBPP_SCORED if number in by_number],
        ),
        "test_split": "test",
        "fewshot_split": "examples",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": len(_MBPP_EXAMPLES),
        "target_delimiter": "",
        "doc_to_text": prompt,
        "doc_to_target": lambda document: f"{document['code']}\n[DONE]",
        "process_results": judge,
        "metric_list": _means("pass@1"),
        "generation_kwargs": {"until": ["[DONE]"], "do_sample": False, "max_gen_toks": 256},
    }


def _published(code: str) -> tuple[list[str], str]:
    """What a published solution defines, which its tests may use, and its lines of imports."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], ""
    names, imports = [], []
    for part in body:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(part.name)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            imports.append(ast.unparse(part))
        elif isinstance(part, ast.Assign):
            names += [target.id for target in part.targets if isinstance(target, ast.Name)]
    return names, "\n".join(imports)


def _humaneval(documents: list[Document]) -> dict[str, Any]:
    def judge(document: Document, results: Sequence[str]) -> dict[str, float]:
        # What stands in the prompt before the function, the tests may use as it is there.
        outcome = run_tests(
            document["prompt"] + results[0],
            f"{document['test']}\ncheck({document['entry_point']})\n",
            [document["entry_point"]],
            given=f"{document['prompt']}\n    pass\n",  # the function itself is replaced
        )
        return {"pass@1": float(outcome.passed)}

    return {
        "output_type": "generate_until",
        "custom_dataset": _splits([], documents),
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": lambda document: document["prompt"],
        "doc_to_target": lambda document: document["canonical_solution"],
        "process_results": judge,
        "metric_list": _means("pass@1"),
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "do_sample": False,
            "max_gen_toks": 512,
        },
    }


def _read(name: str, data: Path) -> list[Document]:
    path = data / _FILES[name]
    try:
        if path.is_file():
            content = read_whole(path)
        elif path.with_name(path.name + ".gz").is_file():
            path = path.with_name(path.name + ".gz")
            content = read_compressed(path)
        else:
            raise FileUnreadableError(
                f"The task {name} needs the file {path} (or {path.name}.gz), as its authors "
                "publish it; --data names the folder."
            )
        documents = [parse_json(line) for line in content.splitlines() if line.strip()]
    except AwqEdgeError:
        raise  # some of them are ValueErrors
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no file of JSON lines: {error}.") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise CheckpointError(f"{path} holds no problems.")
    for number, document in enumerate(documents, start=1):
        for field, kind in _FIELDS[name].items():
            value = document.get(field)
            parts = value if isinstance(value, list) else []
            if not isinstance(value, kind) or not all(isinstance(part, str) for part in parts):
                raise CheckpointError(
                    f"Line {number} of {path} has no {field!r}, or something else in its place; is "
                    "it the file of that task?"
                )
        # Without either, no answer at all would be a right one.
        if name == "gsm8k" and strict_number(document["answer"]) is None:
            raise CheckpointError(
                f"The answer in line {number} of {path} has no number behind ####."
            )
        if name == "mbpp" and not any(test.strip() for test in document["test_list"]):
            raise CheckpointError(f"Line {number} of {path} has no tests.")
    return documents


def _splits(examples: list[Document], scored: list[Document]) -> Callable[..., dict[str, Any]]:
    """What the harness calls for its data."""
    if not scored:
        raise InvalidArgumentError("The file holds no problems besides the examples.")

    def make(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        parts = {"examples": examples, "test": scored}
        return {name: Dataset.from_list(list(part)) for name, part in parts.items() if part}

    return make


def _means(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _plain(number: str) -> str:
    plain = number.replace(",", "").replace("$", "").rstrip(".")
    return plain[:-3] if plain.endswith(".00") else plain
