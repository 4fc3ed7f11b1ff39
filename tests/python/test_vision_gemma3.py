"""Gemma 3: pictures between words of their own, whose rows see each other in the decoder."""

import numpy as np
import pytest
import torch
from vision_models import BEGIN, END, PLACEHOLDER, TEMPLATE, pictures, save, save_tokenizer
from vision_support import GREEDY, LONGER, QUESTION, last_logits

from awq_edge import Model, conversion, torch_decoder
from awq_edge.errors import ContextFullError, InvalidArgumentError
from awq_edge.generation import GenerationConfig
from awq_edge.model_file import read_dequantised

ROWS = 4


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gemma3")
    save("gemma3", directory)
    save_tokenizer(directory, TEMPLATE.replace("<image>", "<begin>"))
    path = directory / "model.awq.gguf"
    conversion.convert(
        str(directory), path, conversion.Options(method="rtn", bits=8, group_size=32)
    )
    return directory, path


@pytest.fixture
def model(converted):
    with Model.open(converted[1], context_length=64) as opened:
        yield opened


def picture(seed=0):
    return pictures(1, 40, seed)[0].numpy()


def gemma_processor(directory):
    """transformers' own, with this tokenizer."""
    from transformers import Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<begin>",
            "eoi_token": "<end>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": 26, "width": 26}, do_pan_and_scan=False)
    return Gemma3Processor(images, tokenizer, image_seq_length=ROWS)


@pytest.mark.parametrize("text", ["red <begin> blue", "<begin><begin> what ?"])
def test_ids_are_those_of_the_processor(converted, model, text):
    made = gemma_processor(converted[0])
    shown = [picture(seed) for seed in range(text.count("<begin>"))]
    expected = made(images=[shown], text=[text], return_tensors="np")["input_ids"][0].tolist()
    prompt = model.picture_prompt(text, shown)
    assert prompt.tokens == expected
    rules = model.pictures.rules
    tiled = prompt.spans[0].picture.tiled
    assert rules.text(tiled, ROWS) == made.full_image_sequence
    assert rules.place == "<begin>"


def test_a_picture_stands_between_its_words_in_a_chat(model):
    ids = model.picture_chat(QUESTION, [picture()])[1].tokens
    at = ids.index(BEGIN)
    assert ids[at : at + ROWS + 2] == [BEGIN, *[PLACEHOLDER] * ROWS, END]


def test_a_question_about_two_pictures_has_the_logits_of_the_float_decoder(converted, model):
    prompt = model.picture_chat(QUESTION, [picture(1), picture(2)])[1]
    held = read_dequantised(converted[1])
    tokens = torch.tensor([prompt.tokens])
    rows = np.concatenate([model.pictures.encoded(span.picture) for span in prompt.spans])
    expected = [
        torch_decoder.logits(
            lambda name: torch.from_numpy(held.tensors[name]),
            held.architecture,
            tokens,
            pictures=(tokens == PLACEHOLDER, torch.from_numpy(rows)),
            both_ways=both_ways,
        )[0, -1].numpy()
        for both_ways in (True, False)
    ]
    found = last_logits(model, prompt)
    errors = [np.linalg.norm(found - one) / np.linalg.norm(one) for one in expected]
    assert errors[0] < 0.03
    assert errors[1] > 2 * errors[0]


def test_the_second_question_costs_no_encoding_and_reads_no_row_again(model):
    first = model.chat(QUESTION, GREEDY, images=[picture()])
    first.text()
    second = model.chat(LONGER, GREEDY, images=[picture()])
    second.text()
    assert model.pictures.encodings == 1
    assert second.reused_tokens > ROWS
    with model.session() as anew:
        expected = anew.generate(model.picture_chat(LONGER, [picture()])[1], GREEDY)
        expected.text()
    assert second.tokens == expected.tokens


def test_a_prompt_that_ends_in_a_picture_is_read_again_as_a_whole(model):
    ids = [5, 9, BEGIN, *[PLACEHOLDER] * ROWS]
    prompt = model.picture_prompt(ids, [picture()])
    expected = last_logits(model, prompt)
    with model.session() as session:
        for _ in range(2):
            generation = session.generate(prompt, GREEDY)
            generation.start()
            np.testing.assert_array_equal(session.last_logits(), expected)
            generation.text()
        assert generation.reused_tokens == len(ids) - ROWS


def test_a_part_of_a_picture_is_refused(model):
    prompt = model.picture_prompt([*[PLACEHOLDER] * ROWS], [picture()])
    rows = model.pictures.encoded(prompt.spans[0].picture)
    with (
        model.session() as session,
        pytest.raises(InvalidArgumentError, match="4 embeddings are read in one call"),
    ):
        session.evaluate_embeddings(rows[:3])


def test_a_context_that_is_too_small_refuses_before_anything_is_encoded(model):
    with pytest.raises(ContextFullError):
        model.chat(QUESTION, GREEDY, images=[picture(seed) for seed in range(12)])
    assert model.pictures.encodings == 0


def test_words_around_pictures_that_a_user_types_stay_text(model):
    typed = "what is <begin> <image> ?"
    alone = model.chat([{"role": "user", "content": typed}], GREEDY).prompt_tokens
    assert BEGIN not in alone
    assert PLACEHOLDER not in alone
    shown = model.chat([{"role": "user", "content": typed}], GREEDY, images=[picture()])
    assert shown.prompt_tokens.count(PLACEHOLDER) == ROWS
    assert shown.prompt_tokens.count(BEGIN) == 1


def test_text_alone_is_read_as_by_its_text_part(converted, model, tmp_path):
    """The text part saved as a model of its own, converted alike: the same logits."""
    from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

    whole = Gemma3ForConditionalGeneration.from_pretrained(converted[0])
    alone = Gemma3ForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.tie_weights()
    alone.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    path = tmp_path / "text.awq.gguf"
    conversion.convert(str(tmp_path), path, conversion.Options(method="rtn", bits=8, group_size=32))
    ids = [5, 9, 17, 4, 33, 60]
    with Model.open(path, context_length=64) as text, text.session() as one:
        with model.session() as other:
            np.testing.assert_array_equal(one.logits(ids), other.logits(ids))


def test_the_server_never_divides_a_picture(model, tmp_path):
    from test_serve_cache import kept_engine
    from test_serve_engine import Heard, heard

    from awq_edge.serve.texts import Text

    def text(seed, shown):
        config = GenerationConfig(max_tokens=6, seed=seed)
        prompt = model.picture_chat(QUESTION, [picture(7)])[1] if shown else None
        ids = prompt.tokens if shown else model.tokenize("what colour ?")
        return Text(model, str(seed), ids, config, Heard(), pictures=prompt)

    texts = [text(seed, seed > 2) for seed in range(1, 6)]
    expected = []
    for one in texts:
        with model.session() as session:
            generation = session.generate(one.pictures or one.prompt, one.config)
            expected.append((generation.text(), generation.tokens))
    for _ in range(2):  # also from what is kept
        engine = kept_engine(tmp_path, parallel=3)
        engine._prompt_rows = lambda writing: 3  # fewer than a picture has
        texts = [text(seed, seed > 2) for seed in range(1, 6)]
        engine.submit(texts)
        assert [(heard(one).text(), heard(one).tokens()) for one in texts] == expected
        engine.stop(5)
