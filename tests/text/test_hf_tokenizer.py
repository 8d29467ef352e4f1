"""The tokenizer under transformers: the ids of tokenizer.py, whichever way they are asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.errors import UserError
from glm2core.text.hf_tokenizer import ChatGLM2Tokenizer
from glm2core.text.prompt import prompt_text
from glm2core.text.tokenizer import EOS, SPECIAL_TOKENS
from tests.text.conftest import TEXTS
from tests.text.test_prompt import CHATS, chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path, "chatglm2")
    return path


@pytest.fixture(scope="module")
def hf(folder) -> ChatGLM2Tokenizer:
    return ChatGLM2Tokenizer.from_pretrained(folder)


@given(text=st.just("") | TEXTS)
def test_any_text_comes_back(hf, tokenizer, text):
    ids = hf(text)["input_ids"]
    assert ids == tokenizer.prefix_ids() + tokenizer.encode(text)
    assert hf.decode(ids, skip_special_tokens=True) == text
    assert hf.decode(ids) == "[gMASK]sop" + text
    assert hf.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert hf.convert_tokens_to_ids(hf.tokenize(text)) == tokenizer.encode(text)


@pytest.mark.parametrize("special", [*SPECIAL_TOKENS, "</s>", "<unk>"])
def test_special_text_is_text(hf, tokenizer, special):
    ids = hf(f"a {special} soprano", add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(hf.all_special_ids)
    assert hf.convert_tokens_to_ids(special) == tokenizer.special_ids[special]


def test_special_ids_and_sizes(hf, tokenizer):
    assert (hf.unk_token_id, hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (0, 1, 2, 0)
    assert (hf.vocab_size, len(hf)) == (tokenizer.size, len(tokenizer))
    assert sorted(hf.all_special_ids) == sorted(tokenizer.special_ids.values())
    assert hf.get_vocab()["[gMASK]"] == tokenizer.special_ids["[gMASK]"]
    assert hf.get_special_tokens_mask(hf("a")["input_ids"], already_has_special_tokens=True) == [1, 1, 0]


def test_batches_pad_on_the_left_or_where_told(hf, tokenizer):
    ids = [tokenizer.prefix_ids() + tokenizer.encode(text) for text in ("a", "soprano sings")]
    padding = [0] * (len(ids[1]) - len(ids[0]))
    batch = hf(["a", "soprano sings"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [padding + ids[0], ids[1]]
    assert batch["attention_mask"].tolist() == [padding + [1] * len(ids[0]), [1] * len(ids[1])]
    right = hf(["a", "soprano sings"], padding=True, padding_side="right")
    assert right["input_ids"] == [ids[0] + padding, ids[1]]
    assert hf.batch_decode(batch["input_ids"], skip_special_tokens=True)[1] == "soprano sings"


def test_a_pair_is_a_prompt_and_its_answer(hf, tokenizer):
    encode = tokenizer.encode
    assert hf("a", "b")["input_ids"] == [*tokenizer.prefix_ids(), *encode("a"), *encode("b"), EOS]
    assert hf("soprano sings 12 songs", truncation=True, max_length=5)["input_ids"] == [
        *tokenizer.prefix_ids(),
        *encode("soprano sings 12 songs")[:3],
    ]


@pytest.mark.parametrize("template", ["chatglm2", "chatglm3"])
@given(messages=CHATS.filter(lambda messages: messages[-1]["role"] == "user"))
def test_chats_have_the_ids_that_training_saw(tokenizer, tmp_path_factory, template, messages):
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save(folder, template)
    hf = ChatGLM2Tokenizer.from_pretrained(folder)
    ids = tokenizer.prompt_ids(messages, template)
    assert hf.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    assert hf.apply_chat_template([messages], add_generation_prompt=True, return_dict=False) == [ids]
    text = hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "[gMASK]sop" + prompt_text(messages, template)


def test_a_chat_with_its_answer(hf, tokenizer):
    messages = chat("q", "the answer")
    expected = tokenizer.prompt_ids(messages, "chatglm2") + tokenizer.encode("the answer")
    assert hf.apply_chat_template(messages, return_dict=False) == expected


def test_saving_and_loading_gives_the_same_tokenizer(hf, folder, tmp_path):
    hf.save_pretrained(tmp_path / "one")
    again = ChatGLM2Tokenizer.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.model" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in (
        "padding_side",
        "prompt_template",
        "pair_format",
        "chat_template",
        "all_special_ids",
        "model_max_length",
    ):
        assert getattr(again, name) == getattr(hf, name)
    assert again("soprano [gMASK]")["input_ids"] == hf("soprano [gMASK]")["input_ids"]


def test_a_released_folder_loads(tokenizer, tmp_path):
    """The released tokenizer_config.json names a class and code of its own; neither is run."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"name_or_path": "THUDM/chatglm3-6b", "remove_space": false, "do_lower_case": false, '
        '"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["own.Code", null]}}'
    )
    hf = ChatGLM2Tokenizer.from_pretrained(tmp_path)
    assert hf.prompt_template == "chatglm3"
    assert hf("a")["input_ids"] == tokenizer.prefix_ids() + tokenizer.encode("a")
    hf.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "user"], ["user", "observation"], ["user", "system"]])
def test_a_chat_out_of_turn_is_refused(hf, roles):
    with pytest.raises(UserError, match="user and assistant messages in turn"):
        hf.apply_chat_template([{"role": role, "content": "x"} for role in roles])
