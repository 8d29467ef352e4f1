"""Which member of the family a checkpoint is, and what its `rope_ratio` therefore means.

The released files share keys and shapes, and nothing in them says how `rope_ratio` is meant:
positions divided by it (chatglm2) or a rotary base multiplied by it (chatglm3). TensorRT-LLM's
models/chatglm/config.py and vllm-project/vllm#1806 met the same question.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Family = Literal["chatglm2", "chatglm3"]

_NAMES: dict[str, Family] = {
    "chatglm2": "chatglm2", "codegeex2": "chatglm2",
    "chatglm3": "chatglm3", "codegeex3": "chatglm3",
}  # fmt: skip
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")
_CHAT_TOKEN = "<|user|>"
_LARGEST_LINEAR_RATIO = 16


def detect_family(config: Mapping[str, Any], folder: Path | None) -> tuple[Family, str]:
    """The family of a released checkpoint, and the evidence in words; chatglm2 in doubt.

    Args:
        config: the values of its config.json.
        folder: where it lies, to look at its name and tokenizer; None = look at the config alone.
    """
    return (
        _by_name(config, folder)
        or _by_tokenizer(folder)
        or _by_rope_ratio(config)
        or ("chatglm2", "no name, tokenizer or rope_ratio tells; taken in doubt")
    )


def family_of_folder(folder: Path) -> tuple[Family, str]:
    """`detect_family` for a folder with a config.json; what the config itself states comes first."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stated = config.get("family")
    if stated in ("chatglm2", "chatglm3"):
        return stated, "config.json says so"
    return detect_family(config, folder)


def _by_name(config: Mapping[str, Any], folder: Path | None) -> tuple[Family, str] | None:
    places = {"the config's _name_or_path": str(config.get("_name_or_path") or "")}
    if folder is not None:
        places["the folder's name"] = folder.resolve().name
    for place, text in places.items():
        for name, family in _NAMES.items():
            if name in text.lower():
                return family, f"{place} is {text!r}"
    return None


def _by_tokenizer(folder: Path | None) -> tuple[Family, str] | None:
    if folder is None:
        return None
    for name in _TOKENIZER_FILES:
        file = folder / name
        if file.is_file() and _CHAT_TOKEN in file.read_text(encoding="utf-8", errors="replace"):
            return "chatglm3", f"{name} holds {_CHAT_TOKEN}"
    return None


def _by_rope_ratio(config: Mapping[str, Any]) -> tuple[Family, str] | None:
    ratio = config.get("rope_ratio")
    if not isinstance(ratio, (int, float)) or ratio == 1:
        return None
    # The released ones: 16 divides positions (chatglm2-6b-32k); 50 and 500 multiply the base (chatglm3-6b-32k, -128k).
    if ratio <= _LARGEST_LINEAR_RATIO:
        return "chatglm2", f"rope_ratio {ratio:g} is a usual division of positions"
    return "chatglm3", f"rope_ratio {ratio:g} is a usual multiple of the rotary base"
