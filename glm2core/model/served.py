"""How other inference engines read a folder's config, and how half precision affects the network's positions.

The statements about engines come from the engines' sources; no engine was run. For a released ChatGLM config, vLLM 0.32
and SGLang 0.5.23 use a rotary base of 10,000 x `rope_ratio`, and llama.cpp's convert_hf_to_gguf.py (October 2026)
writes that base. So networks whose ratio divides positions, such as chatglm2-6b-32k, are served with a wrong base. In
the released layout, none of these engines reads `rope_parameters`. In transformers' Glm layout, vLLM and SGLang read
these values, but the converter does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from glm2core.model.rope import BASE, inverse_frequencies, plain_rope

ENGINES = ("vLLM", "SGLang", "llama.cpp's converter")
HALF_DTYPES = (torch.bfloat16, torch.float16)
GLM = "glm"  # model_type of transformers' layout, which `export` writes

Verdict = Literal["right", "wrong base", "plain"]


@dataclass(frozen=True)
class Served:
    """How an engine rotates queries and keys.

    Args:
        rope: the rotary parameters that the engine uses.
        verdict: `plain` = the engine uses neither the network's scaling nor the network's rotary base.
        note: what else is needed to serve the network correctly.
    """

    engine: str
    rope: dict[str, Any]
    verdict: Verdict
    note: str = ""


def served(values: Mapping[str, Any], rope: Mapping[str, Any], positions: int) -> list[Served]:
    """Return how each engine reads a config.json.

    Args:
        values: the values in config.json.
        rope: the network's rotary parameters.
        positions: length of the network's range.
    """
    by_ratio = plain_rope(BASE * float(values.get("rope_ratio") or 1))
    if values.get("model_type") != GLM:
        note = "" if _known(values) else f"architecture {_architecture(values)} is not supported: export first"
        return [Served(engine, by_ratio, _verdict(by_ratio, rope), note) for engine in ENGINES]
    lengths = {"vLLM": f"--max-model-len {positions}", "SGLang": f"--context-length {positions}"}
    too_long = rope["rope_type"] == "linear"  # both scale the range again, although it is already scaled
    notes = {engine: f"give {option}" if too_long else "" for engine, option in lengths.items()}
    read = [Served(engine, dict(rope), "right", notes[engine]) for engine in lengths]
    converter = ENGINES[-1]
    note = "stops: it expects a GPT-2 vocabulary, which this tokenizer does not have"
    return [*read, Served(converter, by_ratio, _verdict(by_ratio, rope), note)]


def distinct_angles(rope: dict[str, Any], channels: int, positions: int, dtype: torch.dtype) -> tuple[int, float]:
    """Return the number of distinct angles of the fastest pair, and the largest error of any angle, in radians.

    Both numbers apply to rotary tables that are built as in the released code, where positions, frequencies and their
    products are in `dtype`.

    Args:
        channels: `R`, the number of rotary channels in a head.
    """
    frequencies = inverse_frequencies(rope, channels)[0]
    place = torch.arange(positions)[:, None]
    angles = place.to(dtype) * frequencies.to(dtype)  # [T, R / 2]
    error = angles.double() - place.double() * frequencies.double()
    return len(angles[:, 0].unique()), float(error.abs().max())


def _verdict(read: Mapping[str, Any], rope: Mapping[str, Any]) -> Verdict:
    if _meaning(read) == _meaning(rope):
        return "right"
    return "plain" if _meaning(read) == _meaning(plain_rope()) else "wrong base"


def _meaning(rope: Mapping[str, Any]) -> tuple[Any, ...]:
    factor = float(rope.get("factor", 1))
    kind = "default" if factor == 1 else rope["rope_type"]
    return kind, factor, float(rope["rope_theta"])


def _known(values: Mapping[str, Any]) -> bool:
    return _architecture(values) in ("ChatGLMModel", "ChatGLMForConditionalGeneration")


def _architecture(values: Mapping[str, Any]) -> str:
    return str(next(iter(values.get("architectures") or []), None))
