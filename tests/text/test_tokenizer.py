"""SentencePiece with ChatGLM's special tokens: round trips, special text, training, folders of bases."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.errors import UserError
from glm2core.family import template_of
from glm2core.text.tokenizer import BOS, EOS, SPECIAL_TOKENS, SpTokenizer, train_tokenizer
from tests.text.conftest import TEXTS, TRAINING_TEXTS


@given(text=st.just("") | TEXTS)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token < tokenizer.size for token in ids)
    assert np.array_equal(tokenizer.encode_batch([text])[0], np.array(ids, np.int32))


@pytest.mark.parametrize("special", [*SPECIAL_TOKENS, "</s>", "<s>", "<unk>", "<0x0A>"])
def test_special_text_is_text(tokenizer, special):
    text = f"a {special}{special} soprano"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {BOS, EOS, *range(tokenizer.size, len(tokenizer))} & set(ids)


def test_special_ids_follow_the_pieces_in_the_released_order(tokenizer):
    assert [tokenizer.special_ids[token] - tokenizer.size for token in SPECIAL_TOKENS] == list(range(9))
    assert SPECIAL_TOKENS[:5] == ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    assert (tokenizer.special_ids["<unk>"], tokenizer.special_ids["<s>"], tokenizer.special_ids["</s>"]) == (0, 1, 2)
    assert tokenizer.newline == 13
    ids = [*tokenizer.prefix_ids(), *tokenizer.encode("hi"), EOS, 10**6]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "[gMASK]sophi</s>"


def test_a_batch_is_the_same_for_any_number_of_threads(tokenizer):
    texts = [f"{text} {i}" for i, text in enumerate(TRAINING_TEXTS * 30)]
    one = tokenizer.encode_batch(texts, 1)
    assert [list(ids) for ids in one] == [tokenizer.encode(text) for text in texts]
    for threads in (2, 4, None):
        assert all(map(np.array_equal, tokenizer.encode_batch(texts, threads), one))


def test_training_is_deterministic_and_takes_what_there_is():
    assert train_tokenizer(TRAINING_TEXTS, 400).model == train_tokenizer(TRAINING_TEXTS, 400).model
    assert train_tokenizer(TRAINING_TEXTS, 400).size == 400
    little = train_tokenizer(["hello world"], 2000)
    assert 259 < little.size < 300
    assert little.decode(little.encode("天空 hello\n")) == "天空 hello\n"


def test_more_characters_than_room_are_left_to_bytes():
    rare = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 3000))
    tokenizer = train_tokenizer(["the cat sat on the mat " * 50 + rare], 600)
    assert tokenizer.size == 600
    assert tokenizer.decode(tokenizer.encode(rare)) == rare


def test_nothing_to_train_on_and_no_tokenizer_are_sentences(tmp_path):
    with pytest.raises(UserError, match="the training split is empty"):
        train_tokenizer(["", "\n"], 400)
    with pytest.raises(UserError, match=r"has no tokenizer\.model"):
        SpTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        SpTokenizer.load(tmp_path)


def test_a_saved_folder_remembers_wording_and_pair_format(tmp_path, tokenizer):
    tokenizer.save(tmp_path, "chatglm3", "llama")
    assert template_of(tmp_path)[0] == "chatglm3"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["pair_format"] == "llama"
    assert SpTokenizer.load(tmp_path).sha256 == tokenizer.sha256


def test_prompts_have_the_structure_of_the_golden_ids(tokenizer):
    """The structure of the ids below, with whatever ids this tokenizer has."""
    ids = tokenizer.prompt_ids([{"role": "user", "content": "你好"}], "chatglm2")
    newline, special = tokenizer.newline, tokenizer.special_ids
    assert ids[:2] == [special["[gMASK]"], special["sop"]]
    lines = [i for i, token in enumerate(ids) if token == newline]
    assert [lines[1] - lines[0], lines[3] - lines[2]] == [1, 1]
    assert tokenizer.decode(ids[2 : lines[0]]) == "[Round 1]"
    assert tokenizer.decode(ids[lines[3] + 1 :]) == "答："
    assert tokenizer.prefix_ids("llama") == [BOS]


def test_golden_ids_of_the_released_tokenizer():
    """Ids as the released chatglm2-6b gives them; GLM2CORE_TOKENIZER names a folder with its tokenizer.model."""
    folder = os.environ.get("GLM2CORE_TOKENIZER")
    if not folder:
        pytest.skip("GLM2CORE_TOKENIZER names no released tokenizer")
    tokenizer = SpTokenizer.load(Path(folder))
    assert (tokenizer.size, tokenizer.special_ids["[gMASK]"], tokenizer.special_ids["<|observation|>"]) == (
        64789,
        64790,
        64797,
    )
    assert tokenizer.prompt_ids([{"role": "user", "content": "你好"}], "chatglm2") == [
        64790,
        64792,
        790,
        30951,
        517,
        30910,
        30939,
        30996,
        13,
        13,
        54761,
        31211,
        39701,
        13,
        13,
        55437,
        31211,
    ]
    assert tokenizer.encode("你好")[0] == 36474
