"""tokenizer.json gives the ids of tokenizer.model: on any text, on real texts, in chats."""

import io
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from glm2core.errors import UserError
from glm2core.export.fast_tokenizer import fast_tokenizer, special_spellings
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer
from tests.cli.conftest import SHARED, raw_texts

ANY_TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \u2581\n\t\0ab01在的<>x.")), max_size=60
)
CHAT = [
    {"role": "user", "content": "你好, a sop?"},
    {"role": "assistant", "content": " yes\n"},
    {"role": "user", "content": "Tell me\n\nmore "},
]
SYSTEM = {"role": "system", "content": "Sopranos only."}


@pytest.fixture(scope="module")
def fast(tokenizer):
    return fast_tokenizer(tokenizer, "chatglm2", "glm2", max_length=2048)


@settings(max_examples=400, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_has_the_same_ids_and_comes_back(text, tokenizer, fast):
    special = any(name in text for name in special_spellings(tokenizer))
    ids = fast.encode(text, add_special_tokens=False)
    assert special or ids == tokenizer.encode(text)
    assert special or fast.decode(ids) == tokenizer.decode(ids)


def test_a_sop_in_a_text_stays_text(tokenizer, fast):
    for text in ("soprano", "a sop to Cerberus", "sop", "eop sop", "sop你好"):
        assert fast(text).input_ids == tokenizer.prefix_ids() + tokenizer.encode(text)


def test_two_thousand_real_texts():
    files = sorted((SHARED / "data").glob("alpaca_*.json"))
    rows = [row for file in files for row in json.loads(file.read_text("utf-8"))]
    texts = [row[field] for row in rows for field in ("instruction", "input", "output") if row[field]] or raw_texts()
    texts = (texts * (2000 // len(texts) + 1))[:2000] if len(texts) < 2000 else texts
    tokenizer = train_tokenizer(texts[::3], 3000)
    fast = fast_tokenizer(tokenizer, "chatglm2", "glm2", max_length=2048)
    assert len(texts) >= 2000
    assert fast(texts, add_special_tokens=False).input_ids == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("template", ["chatglm2", "chatglm3"])
@pytest.mark.parametrize("pair_format", ["glm2", "llama"])
@pytest.mark.parametrize("chat", [CHAT[:1], CHAT, [SYSTEM, *CHAT]])
def test_chats_have_the_ids_of_training(template, pair_format, chat, tokenizer):
    fast = fast_tokenizer(tokenizer, template, pair_format, max_length=2048)
    found = fast.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert found == tokenizer.prompt_ids(chat, template, pair_format)


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nfkc"}, {"remove_extra_whitespaces": True}])
def test_other_normalizations(options):
    tokenizer = SpTokenizer(_trained("bpe", **options))
    fast = fast_tokenizer(tokenizer, "chatglm2", "glm2", max_length=2048)
    for text in (*raw_texts()[:200], "ﬁne  ＡＢＣ ", " a  b "):
        ids = fast.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text), text


def test_a_unigram_model_is_refused():
    with pytest.raises(UserError, match="is not BPE"):
        fast_tokenizer(SpTokenizer(_trained("unigram")), "chatglm2", "glm2", max_length=2048)


def _trained(kind: str, **options: object) -> bytes:
    model = io.BytesIO()
    defaults = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(raw_texts()),
        model_writer=model,
        model_type=kind,
        vocab_size=1500,
        byte_fallback=True,
        minloglevel=2,
        **{**defaults, **options},
    )
    return model.getvalue()
