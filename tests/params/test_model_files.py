"""The JSON files of a model's folder came with somebody's weights: by their schemas, or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from glm2core.errors import UserError
from glm2core.params.model_files import (
    ConfigFile,
    GenerationFile,
    IndexFile,
    ModelFile,
    RopeFile,
    TokenizerFile,
    read_config_file,
    read_json,
    read_model_file,
)


def write(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("schema", "values", "said"),
    [
        (ConfigFile, {"num_layers": 10**9}, "num_layers must be at most 512; got 1000000000"),
        (ConfigFile, {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 512"),
        (ConfigFile, {"hidden_size": 0}, "hidden_size must be at least 1"),
        (ConfigFile, {"num_attention_heads": 10**6}, "num_attention_heads must be at most 1,024"),
        (ConfigFile, {"padded_vocab_size": "x"}, "padded_vocab_size must be a whole number; got 'x'"),
        (ConfigFile, {"seq_length": 1e9}, "seq_length must be a whole number"),
        (ConfigFile, {"seq_length": 10**30}, "seq_length must be"),
        (ConfigFile, {"num_layers": None}, "num_layers must be a whole number; got null"),
        (ConfigFile, {"use_cache": 1}, "use_cache must be true or false"),
        (ConfigFile, {"kv_channels": 20}, "kv_channels must be a multiple of 8"),
        (ConfigFile, {"multi_query_group_num": 3}, "must be a multiple of multi_query_group_num (3)"),
        (ConfigFile, {"layernorm_epsilon": float("nan")}, "layernorm_epsilon must be a finite number"),
        (ConfigFile, {"rope_ratio": float("inf")}, "rope_ratio must be a finite number"),
        (ConfigFile, {"rope_ratio": -1}, "rope_ratio must be above 0"),
        (ConfigFile, {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling must be null"),
        (ConfigFile, {"rope_parameters": {"rope_type": "../x"}}, "rope_parameters.rope_type must be one of default"),
        (ConfigFile, {"rope_parameters": {"rope_type": "linear"}}, "rope_type linear needs factor"),
        (ConfigFile, {"rope_parameters": {"rope_theta": 1}}, "rope_parameters.rope_theta must be above 1"),
        (ConfigFile, {"rope_parameters": {"partial_rotary_factor": 1.0}}, "partial_rotary_factor must be at most 0.5"),
        (ConfigFile, {"rope_parameters": 5}, "rope_parameters must hold the keys rope_type"),
        (ConfigFile, {"torch_dtype": "evil"}, "torch_dtype must be one of null, float16"),
        (ConfigFile, {"family": "glm4"}, "family must be one of auto, chatglm2, chatglm3"),
        (ConfigFile, {"eos_token_id": [2, -1]}, "eos_token_id: must be a token's id"),
        (ConfigFile, dict.fromkeys(list(ConfigFile.model_fields)[:7], -1), "and 3 more"),
        (TokenizerFile, {"pair_format": []}, "pair_format must be one of glm2, llama; got []"),
        (TokenizerFile, {"prompt_template": "__import__"}, "prompt_template must be one of null, chatglm2, chatglm3"),
        (GenerationFile, {"temperature": float("nan")}, "temperature must be a finite number"),
        (GenerationFile, {"top_k": -1}, "top_k must be at least 0"),
        (IndexFile, {}, "weight_map is missing"),
        (IndexFile, {"weight_map": {}}, "weight_map must have at least 1 entry"),
        (IndexFile, {"weight_map": {"a": 5}}, "weight_map.a must be text; got 5"),
        (
            IndexFile,
            {"weight_map": {"a": "../x.bin"}},
            "weight_map.a: must be the plain name of a .bin or .safetensors",
        ),
        (IndexFile, {"weight_map": {"a": "/etc/passwd"}}, "got '/etc/passwd'"),
        (IndexFile, {"weight_map": {"a": "b\\c.bin"}}, "plain name"),
        (IndexFile, {"weight_map": {"a": "a\0.bin"}}, "plain name"),
        (IndexFile, {"weight_map": {"a": "tokenizer.model"}}, "plain name"),
        (IndexFile, {"weight_map": {"a": "x" * 300 + ".bin"}}, "plain name"),
        (IndexFile, {"weight_map": {str(i): ".." for i in range(1000)}}, "and 996 more"),
    ],
    ids=str,
)
def test_a_wrong_value_is_a_sentence(
    schema: type[ModelFile], values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "some.json", values)
    with pytest.raises(UserError) as raised:
        read_model_file(file, schema)
    assert str(raised.value).startswith(f"{file}: ") and said in str(raised.value)
    assert len(str(raised.value)) < 2500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("\0", "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        ("[]", "must hold one JSON object"),
        ("null", "must hold one JSON object"),
        ("[" * 100_000, "nested at most 32 deep"),
        ('{"a":' * 100_000, "nested at most 32 deep"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested at most 32 deep"),
        ('{"a": "' + "x" * (5 << 20) + '"}', "more than 4,194,304 bytes"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_json_object_is_a_sentence(content: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        read_json(file)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "circle", "dangling"])
def test_what_is_no_file_is_a_sentence(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case "circle":
            file.symlink_to(file)
        case _:
            file.symlink_to("nowhere")
    with pytest.raises(UserError, match="is not a file"):
        read_json(file)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": ["chatglm"]}, "model_type is"),
        ({"model_type": "glm"}, "an export of this project"),
        ({"model_type": "glm4"}, "GLM-4-0414"),
        ({"model_type": "chatglm", "padded_vocab_size": 151552, "num_layers": 40}, "this is GLM-4 or CodeGeeX4"),
        ({"model_type": "chatglm", "inner_hidden_size": 16384, "vocab_size": 130528}, "this is ChatGLM-6B, the first"),
        ({"position_encoding_2d": True}, "this is ChatGLM-6B, the first"),
        ({"model_type": "chatglm", "padded_vocab_size": 151552, "vision_config": {}}, "GLM-4V"),
    ],
)
def test_another_network_is_named(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json", values)
    with pytest.raises(UserError, match=f"{said}.*Only ChatGLM2, ChatGLM3 and CodeGeeX2 are supported"):
        read_config_file(tmp_path)


def test_other_keys_are_dropped(tmp_path: Path) -> None:
    hostile = {"attn_implementation": "a/b", "quantization_config": {"x": 1}, "use_kernels": True, "__class__": "x"}
    write(tmp_path / "config.json", {"num_hidden_layers": 3, "hidden_size": 64, **hostile})
    config = read_config_file(tmp_path)
    assert config is not None and config.given() == {"num_layers": 3, "hidden_size": 64}


def test_a_rope_is_completed_and_nothing_of_it_is_not_given() -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    given = ConfigFile(rope_parameters=RopeFile(**linear)).given()
    assert given == {"rope_parameters": {**linear, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}
    assert ConfigFile(rope_parameters=RopeFile()).given() == {"rope_parameters": {}}


def test_sampling_that_is_not_asked_for_is_not_given() -> None:
    values = {"temperature": 0.8, "top_p": 0.5, "max_length": 100}
    assert GenerationFile.model_validate(values).given() == {"max_length": 100}
    assert GenerationFile.model_validate({**values, "do_sample": True}).given() == {**values, "do_sample": True}


def test_no_file_is_none(tmp_path: Path) -> None:
    assert read_config_file(tmp_path) is None
