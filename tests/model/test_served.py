"""How other engines read configs, and the positions that half precision leaves."""

from typing import Any

import pytest
import torch

from glm2core.model.config import ChatGLM2Config
from glm2core.model.convert_glm import glm_config
from glm2core.model.rope import linear_rope, ntk_base, plain_rope, yarn_rope
from glm2core.model.served import distinct_angles, served
from tests.model.released_layout import released_config

ENGINES = ["vLLM", "SGLang", "llama.cpp's converter"]


@pytest.mark.parametrize(
    ("member", "verdict"),
    [
        ("chatglm2-6b", "right"),
        ("chatglm2-6b-32k", "wrong base"),
        ("codegeex2-6b", "right"),
        ("chatglm3-6b", "right"),
        ("chatglm3-6b-32k", "right"),
        ("chatglm3-6b-128k", "right"),
    ],
)
def test_released_folders(member: str, verdict: str) -> None:
    values = released_config(member)
    found = served(values, ChatGLM2Config.from_dict(values).rope_parameters, 32768)
    assert [(entry.engine, entry.verdict, entry.note) for entry in found] == [(name, verdict, "") for name in ENGINES]
    assert {entry.rope["rope_theta"] for entry in found} == {10000.0 * values.get("rope_ratio", 1)}


TUNED: list[tuple[dict[str, Any], str]] = [
    (plain_rope(), "right"),
    (linear_rope(16), "plain"),
    (yarn_rope(16, 2048), "plain"),
    (plain_rope(ntk_base(16, 64)), "plain"),
    (linear_rope(1), "right"),
]


@pytest.mark.parametrize(("rope", "verdict"), TUNED)
def test_tuned_folders_are_to_be_exported(rope: dict[str, Any], verdict: str) -> None:
    config = ChatGLM2Config(rope_parameters=rope, num_layers=1)
    values = config.to_dict() | {"architectures": ["ChatGLM2ForCausalLM"]}
    for entry in served(values, rope, 32768):
        assert entry.verdict == verdict
        assert "ChatGLM2ForCausalLM is not supported: export first" in entry.note


@pytest.mark.parametrize(("rope", "verdict"), TUNED)
def test_exports_are_read_as_they_are(rope: dict[str, Any], verdict: str) -> None:
    values = glm_config(ChatGLM2Config(rope_parameters=rope, num_layers=1, seq_length=32768)).to_dict()
    vllm, sglang, converter = served(values, rope, 32768)
    assert vllm.verdict == sglang.verdict == "right"
    linear = rope["rope_type"] == "linear"
    assert vllm.note == ("give --max-model-len 32768" if linear else "")
    assert sglang.note == ("give --context-length 32768" if linear else "")
    assert converter.verdict == verdict and "GPT-2 vocabulary" in converter.note


def test_half_precision_merges_positions() -> None:
    # fp16 has every whole number to 2,048, then every 2nd, 4th, 8th, 16th: 2,049 + 4 x 1,024 = 6,145 below 32,768
    assert distinct_angles(plain_rope(), 64, 2048, torch.float16)[0] == 2048
    assert distinct_angles(plain_rope(), 64, 32768, torch.float16)[0] == 6145
    assert distinct_angles(linear_rope(16), 64, 32768, torch.float16)[0] == 6145
    assert distinct_angles(plain_rope(), 64, 256, torch.bfloat16)[0] == 256
    assert distinct_angles(plain_rope(), 64, 32768, torch.bfloat16)[0] == 257 + 7 * 128
    for rope in (plain_rope(), linear_rope(16)):
        assert distinct_angles(rope, 64, 32768, torch.float32)[0] == 32768
    # reference: 22.6 rad at ratio 1 and 1.4 at 16
    assert 8 <= distinct_angles(plain_rope(), 64, 32768, torch.float16)[1] < 30
    assert distinct_angles(linear_rope(16), 64, 32768, torch.float16)[1] < 2
