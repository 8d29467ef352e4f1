"""Family and template: one guess from a folder, for the network and for the tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from glm2core.errors import UserError
from glm2core.family import family_of, template_of
from glm2core.model import ChatGLM2Config
from glm2core.model.loading import read_config
from glm2core.params import TokenizeParams, read_base
from glm2core.text.chat_format import ChatFormat
from glm2core.text.encode import tokenizer_for
from glm2core.text.tokenizer import train_tokenizer
from tests.model.released_layout import released_config

CODE = "tokenization_chatglm.py"
TOKENIZER = "tokenizer_config.json"


def write(folder: Path, config: dict[str, Any], files: dict[str, Any]) -> Path:
    folder.mkdir()
    for name, content in {"config.json": config, **files}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "files", "name", "member", "evidence"),
    [
        ({}, {}, "model", "chatglm2", "assumed"),
        ({}, {TOKENIZER: {}}, "model", "chatglm2", "assumed"),
        ({}, {}, "my-chatglm3-tuned", "chatglm3", "the folder's name is 'my-chatglm3-tuned'"),
        ({}, {}, "codegeex2-6b", "chatglm2", "the folder's name is 'codegeex2-6b'"),
        ({"rope_ratio": 16}, {}, "model", "chatglm2", "rope_ratio 16"),
        ({"rope_ratio": 50}, {}, "model", "chatglm3", "rope_ratio 50"),
        ({"rope_ratio": 50}, {CODE: "roles = ['<|user|>']"}, "model", "chatglm3", f"{CODE} holds <|user|>"),
        ({}, {TOKENIZER: {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}}}, "model", "chatglm3", TOKENIZER),
        ({}, {"added_tokens.json": {"<|user|>": 64795}}, "model", "chatglm3", "added_tokens.json holds <|user|>"),
        ({"_name_or_path": "THUDM/chatglm3-6b"}, {}, "model", "chatglm3", "config.json's _name_or_path"),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 50}, {}, "chatglm3", "chatglm2", "_name_or_path"),
        ({"auto_map": {"AutoConfig": "THUDM/chatglm3-6b--c.C"}}, {}, "model", "chatglm3", "config.json's auto_map"),
        ({}, {TOKENIZER: {"name_or_path": "THUDM/chatglm3-6b"}}, "model", "chatglm3", f"{TOKENIZER}'s name_or_path"),
        ({"rope_ratio": 50}, {TOKENIZER: {"name_or_path": "THUDM/chatglm2-6b"}}, "model", "chatglm2", TOKENIZER),
        ({"family": "chatglm3", "_name_or_path": "chatglm2-6b"}, {}, "model", "chatglm3", "config.json states family"),
        ({}, {TOKENIZER: {"prompt_template": "chatglm2", "added": "<|user|>"}}, "model", "chatglm2", TOKENIZER),
    ],
)
def test_network_and_tokenizer_take_a_folder_for_the_same_member(
    config: dict[str, Any], files: dict[str, Any], name: str, member: str, evidence: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / name, config, files)
    for found, why in (family_of(folder), template_of(folder)):
        assert found == member
        assert evidence in why
    assert read_config(folder, notice=lambda sentence: None).family == member


def test_what_files_state_may_differ(tmp_path: Path) -> None:
    """A base of one member may be tuned with the other's wording."""
    folder = write(tmp_path / "chatglm3", {"family": "chatglm2"}, {TOKENIZER: {"prompt_template": "chatglm3"}})
    assert family_of(folder) == ("chatglm2", "config.json states family chatglm2")
    assert template_of(folder) == ("chatglm3", f"{TOKENIZER} states prompt_template chatglm3")


def test_a_rope_ratio_and_chat_tokens_give_positions_and_wording_of_one_member(tmp_path: Path) -> None:
    """Positions were chatglm3's and the wording chatglm2's, and nothing said so."""
    config = released_config("chatglm3-6b-32k")
    config.pop("_name_or_path")
    folder = write(tmp_path / "base", config, {CODE: "if token in ['<|user|>']: ..."})
    tokenizer = train_tokenizer(["one text and another, with 12 lines\nand more"] * 5, 300)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    said: list[str] = []
    positions = read_config(folder, notice=said.append).rope_parameters
    _, template, evidence = tokenizer_for(str(folder), TokenizeParams(), tmp_path)
    assert (positions["rope_type"], positions["rope_theta"]) == ("default", 500_000.0)
    assert template == "chatglm3"
    assert evidence == f"{CODE} holds <|user|>" and evidence in said[0]
    for loaded in (ChatGLM2Config.from_pretrained(folder), AutoConfig.from_pretrained(folder)):
        assert loaded.rope_parameters == positions


def test_a_config_alone_is_read_without_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name in the working directory says nothing about values that come from elsewhere."""
    write(tmp_path / "base", {"family": "chatglm3"}, {})
    monkeypatch.chdir(tmp_path)
    assert ChatGLM2Config(name_or_path="base", rope_ratio=16).family == "chatglm2"


@pytest.mark.parametrize("name", ["config.json", TOKENIZER])
def test_damaged_json_is_named(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "base", {}, {name: "{"})
    with pytest.raises(UserError, match=f"{name} is not valid JSON"):
        template_of(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "chatglm", "padded_vocab_size": 151552}, "this is GLM-4"),
        ({"model_type": "chatglm", "inner_hidden_size": 16384}, "this is ChatGLM-6B, the first generation"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
    ],
)
def test_another_network_is_named_before_its_tokenizer(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Its tokenizer is of another kind: as the first thing told, that would lead nowhere."""
    folder = write(tmp_path / "base", config, {"tokenizer.model": "no SentencePiece"})
    readers: list[Callable[[Path], object]] = [ChatFormat.load, read_config, read_base]
    for read in (*readers, lambda place: tokenizer_for(str(place), TokenizeParams(), tmp_path)):
        with pytest.raises(UserError, match=said):
            read(folder)
