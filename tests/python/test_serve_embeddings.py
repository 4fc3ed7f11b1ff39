"""Embeddings over HTTP, by the clients of two interfaces."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import numpy as np
import pytest
from serving import Server

from awq_edge import Model

TEXTS = ["It was a dark night.", "The garden was in bloom.", "Pray be seated. " * 12]


@pytest.fixture(scope="module")
def expected(chat_file: Path) -> np.ndarray:
    with Model.open(chat_file, threads=1) as model:
        return model.embed(TEXTS)


def test_openai_client(server: Server, expected: np.ndarray) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="any", input=TEXTS)  # as base64
    assert [entry.index for entry in found.data] == [0, 1, 2]
    assert np.array_equal(np.array([e.embedding for e in found.data], np.float32), expected)
    assert found.usage.prompt_tokens == found.usage.total_tokens > 50
    one = client.embeddings.create(model="any", input=TEXTS[1], encoding_format="float")
    assert np.array_equal(np.array(one.data[0].embedding, np.float32), expected[1])
    short = client.embeddings.create(model="any", input=TEXTS[:1], dimensions=16)
    cut = expected[0][:16].astype(float)
    assert np.allclose(short.data[0].embedding, cut / np.linalg.norm(cut), atol=1e-6)


def test_ollama_client(server: Server, expected: np.ndarray) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(server.url)
    found = client.embed(model="novels-chat", input=TEXTS)
    assert np.array_equal(np.array(found.embeddings, np.float32), expected)
    assert found.prompt_eval_count > 50
    one = client.embeddings(model="novels-chat", prompt=TEXTS[2])
    assert np.array_equal(np.array(one.embedding, np.float32), expected[2])


def test_beside_texts_that_are_written(server: Server, expected: np.ndarray) -> None:
    body = {"prompt": "It was", "max_tokens": 60, "temperature": 0}
    alone = server.ask("/v1/completions", body)[1]["choices"]
    texts: list[object] = []

    def write() -> None:
        texts.append(server.ask("/v1/completions", body)[1]["choices"])

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = server.ask("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})[1]
    for thread in threads:
        thread.join()
    assert texts == [alone] * 3
    for entry, vector in zip(found["data"], expected):
        assert base64.b64decode(entry["embedding"]) == vector.astype("<f4").tobytes()


def test_what_cannot_be_embedded_is_told(server: Server) -> None:
    for body, status, words in [
        ({}, 400, "input is missing"),
        ({"input": []}, 400, "input is missing"),
        ({"input": [1, "a"]}, 400, "neither texts nor token ids"),
        ({"input": [[1, -1]]}, 400, "-1"),
        ({"input": ["x"] * 2049}, 400, "at most 2048"),
        ({"input": "x", "dimensions": 0}, 400, "dimensions is 0"),
        ({"input": "x", "dimensions": 100_000}, 400, "this model's embeddings have"),
        ({"input": "x", "encoding_format": "hex"}, 400, "neither"),
        ({"input": "word " * 9000}, 400, "send less"),
    ]:
        found, answer, _ = server.ask("/v1/embeddings", body)
        assert found == status, (body, answer)
        assert words in answer["error"]["message"]
    # Ollama cuts what is too long, unless it is told not to.
    long = {"input": "word " * 9000}
    assert server.ask("/api/embed", long)[0] == 200
    assert server.ask("/api/embed", {**long, "truncate": False})[0] == 400
    assert server.ask("/api/embed", {"model": "novels-chat"})[1]["embeddings"] == []
