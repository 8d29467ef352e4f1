"""Configurations: as released, by family, and refused ones."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoConfig

from glm2core.errors import UserError
from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from glm2core.model.loading import read_config
from glm2core.model.presets import PRESETS, preset_config
from glm2core.model.rope import linear_rope, plain_rope
from glm2core.params import ModelParams
from tests.model.released_layout import MEMBERS, released_config

MEANING = {
    "chatglm2-6b": plain_rope(),
    "chatglm2-6b-32k": linear_rope(16),
    "codegeex2-6b": plain_rope(),
    "chatglm3-6b": plain_rope(),
    "chatglm3-6b-32k": plain_rope(5e5),
    "chatglm3-6b-128k": plain_rope(5e6),
}


def write(folder: Path, **values: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("member", MEMBERS)
def test_released_configs_mean_what_they_meant(member: str, tmp_path: Path) -> None:
    said: list[str] = []
    config = read_config(write(tmp_path, **released_config(member)), notice=said.append)
    assert config.rope_parameters == MEANING[member] == preset_config(member).rope_parameters
    assert config.family == ("chatglm3" if "chatglm3" in member else "chatglm2") == preset_config(member).family
    assert config.seq_length == MEMBERS[member]["seq_length"] == preset_config(member).seq_length
    assert f"family {config.family}" in said[0]
    assert member in said[0]  # the evidence
    for loaded in (ChatGLM2Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.rope_parameters == config.rope_parameters


def test_transformers_names() -> None:
    config = preset_config("chatglm2-6b")
    assert (config.num_hidden_layers, config.vocab_size, config.intermediate_size) == (28, 65024, 13696)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (2, 128, 32768)


def test_saved_config_is_its_own(tmp_path: Path) -> None:
    """The meaning of `rope_ratio` is settled once: the saved file states family and rope_parameters."""
    read_config(write(tmp_path / "a", **released_config("chatglm3-6b-32k"))).save_pretrained(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert saved["family"] == "chatglm3"
    assert "rope_ratio" not in saved
    assert "auto_map" not in saved
    again = read_config(tmp_path / "b")
    assert again.rope_parameters == plain_rope(5e5)


def test_a_stated_family_decides(tmp_path: Path) -> None:
    folder = write(tmp_path, **released_config("chatglm2-6b-32k"))
    assert read_config(folder, family="chatglm3").rope_parameters == plain_rope(160_000.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rmsnorm", False),
        ("multi_query_attention", False),
        ("apply_residual_connection_post_layernorm", True),
        ("add_bias_linear", True),
        ("post_layer_norm", False),
        ("interleaved_qkv", True),
        ("original_rope", False),
        ("fp32_residual_connection", True),
        ("hidden_dropout", 0.1),
        ("attention_dropout", 0.1),
        ("quantization_bit", 4),
        ("tie_word_embeddings", True),
        ("kv_channels", 20),
        ("family", "chatglm4"),
        ("multi_query_group_num", 3),
        ("rope_ratio", -1),
    ],
)
def test_what_is_not_built_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"config: .*{key}"):
        ChatGLM2Config(**{**released_config("chatglm2-6b"), key: value})


def test_presets_have_the_released_sizes() -> None:
    with torch.device("meta"):
        full, tiny, small = (ChatGLM2ForCausalLM(preset_config(name)) for name in ("chatglm2-6b", "tiny", "small"))
    tensors = full.state_dict()
    assert len(tensors) == 200 - 1  # the released files also store the rotary frequencies: 64 bytes
    assert 2 * sum(t.numel() for t in tensors.values()) == 12_487_168_064 - 64
    assert round(tiny.num_parameters() / 1e6, 1) == 1.3
    assert round(small.num_parameters() / 1e6, 1) == 85.8


def test_params_offer_exactly_the_presets_there_are() -> None:
    # glm2core.params names them itself: it must not import torch.
    offered = get_args(ModelParams.model_fields["preset"].annotation)
    assert set(offered) == set(PRESETS)


def test_presets_fit_the_tokenizer() -> None:
    assert preset_config("tiny", vocab_size=2001).padded_vocab_size == 2048
    assert preset_config("tiny", vocab_size=1984).padded_vocab_size == 1984
    with pytest.raises(UserError, match=r"'chatglm2-6b'\?"):
        preset_config("chatglm2_6b")
    assert set(MEANING) < set(PRESETS)
