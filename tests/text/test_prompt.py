"""The wording of prompts: to the letter, in text, ids and Jinja."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from glm2core.text.prompt import PREFIX_TOKENS, has_heads, jinja_template, open_round_pieces, prompt_text, round_parts
from tests.text.conftest import NOT_BLANK

TEMPLATES = ["chatglm2", "chatglm3"]


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHATS = st.builds(
    lambda texts, system: chat(*texts, system=system),
    st.lists(NOT_BLANK, min_size=1, max_size=5),
    st.none() | NOT_BLANK,
)


def test_chatglm2_wording():
    assert prompt_text(chat("你好"), "chatglm2") == "[Round 1]\n\n问：你好\n\n答："
    assert prompt_text(chat("a", "b", "c", system="s"), "chatglm2") == (
        "s\n\n[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答："
    )


def test_chatglm3_wording():
    assert prompt_text(chat("a", "b", "c", system="s"), "chatglm3") == (
        "<|system|>\n s<|user|>\n a<|assistant|>\n b<|user|>\n c<|assistant|>\n"
    )


def test_the_answer_is_left_out_of_its_prompt():
    for template in TEMPLATES:
        assert prompt_text(chat("q", "a"), template) == prompt_text(chat("q"), template)


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=CHATS.filter(lambda messages: messages[-1]["role"] == "user"))
def test_the_jinja_template_renders_the_same_text(template, messages):
    prefix = PREFIX_TOKENS["glm2"]
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=jinja_template(template, prefix), add_generation_prompt=True
    )
    assert rendered[0] == "[gMASK]sop" + prompt_text(messages, template)


@given(messages=CHATS)
def test_parts_have_the_ids_of_the_whole_text(tokenizer, messages):
    """With chatglm2 there is no special token between the parts: one text, encoded at once or in parts."""
    whole = tokenizer.encode(prompt_text(messages, "chatglm2"))
    assert tokenizer.prompt_ids(messages, "chatglm2") == tokenizer.prefix_ids() + whole


@pytest.mark.parametrize("template", TEMPLATES)
@given(question=NOT_BLANK, text=st.just("") | NOT_BLANK.map(lambda text: "\n" + text))
def test_the_open_round_in_pieces_has_the_same_ids(tokenizer, template, question, text):
    pieces = open_round_pieces(template, question, text)
    parts = round_parts(template, question + text)
    in_pieces = [token for piece in pieces if piece.text for token in tokenizer.part_ids(piece)]
    assert in_pieces == [token for part in parts for token in tokenizer.part_ids(part)]


def test_every_template_numbers_its_rounds_or_not():
    assert [has_heads(template) for template in TEMPLATES] == [True, False]
    assert ["[Round 1]" in prompt_text(chat("q"), template) for template in TEMPLATES] == [True, False]
