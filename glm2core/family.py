"""Which member of the family a model folder holds: what its `rope_ratio` means, and how its prompts are worded.

The released files share keys and shapes, and nothing in them says how `rope_ratio` is meant:
positions divided by it (chatglm2) or a rotary base multiplied by it (chatglm3). TensorRT-LLM's
models/chatglm/config.py and vllm-project/vllm#1806 met the same question. The network asks for the
family and the tokenizer for the template; both get the same guess unless a file states otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from glm2core.errors import UserError

Family = Literal["chatglm2", "chatglm3"]
Found = tuple[Family, str]  # and the evidence in words

_NAMES: dict[str, Family] = {
    "chatglm2": "chatglm2",
    "codegeex2": "chatglm2",
    "chatglm3": "chatglm3",
    "codegeex3": "chatglm3",
}
_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_TOKENIZER_FILES = (_TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")
_CHAT_TOKEN = "<|user|>"
_LARGEST_LINEAR_RATIO = 16


def family_of(folder: Path) -> Found:
    """What `rope_ratio` means in a folder's config.json, and the evidence: stated there, else `guess_member`.

    Raises:
        UserError: a file of the folder is not valid JSON.
    """
    config = _json_file(folder / _CONFIG)
    return _stated(config, "family", _CONFIG) or guess_member(config, folder)


def template_of(folder: Path) -> Found:
    """Which wording a folder's model was made with, and the evidence: stated, else the family's.

    Raises:
        UserError: a file of the folder is not valid JSON.
    """
    tokenizer = _json_file(folder / _TOKENIZER_CONFIG)
    return _stated(tokenizer, "prompt_template", _TOKENIZER_CONFIG) or family_of(folder)


def guess_member(config: Mapping[str, Any], folder: Path | None = None) -> Found:
    """The member that names, tokenizer files and `rope_ratio` point to, and the evidence; chatglm2 in doubt.

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


def _stated(values: Mapping[str, Any], key: str, file: str) -> Found | None:
    value = values.get(key)
    return (value, f"{file} states {key} {value}") if value in ("chatglm2", "chatglm3") else None


def _by_name(config: Mapping[str, Any], folder: Path | None) -> Found | None:
    places = {f"{_CONFIG}'s {key}": config.get(key) for key in ("_name_or_path", "auto_map")}
    if folder is not None:
        tokenizer = _json_file(folder / _TOKENIZER_CONFIG)
        places[f"{_TOKENIZER_CONFIG}'s name_or_path"] = tokenizer.get("name_or_path")
        places["the folder's name"] = folder.resolve().name
    for place, value in places.items():
        for name, family in _NAMES.items():
            if name in str(value).lower():
                return family, f"{place} is {value!r}"
    return None


def _by_tokenizer(folder: Path | None) -> Found | None:
    if folder is None:
        return None
    # Tokenizer files that state their wording were written here, and hold every member's tokens.
    stated = _stated(_json_file(folder / _TOKENIZER_CONFIG), "prompt_template", _TOKENIZER_CONFIG)
    if stated is not None:
        return stated
    for name in _TOKENIZER_FILES:
        file = folder / name
        if file.is_file() and _CHAT_TOKEN in file.read_text(encoding="utf-8", errors="replace"):
            return "chatglm3", f"{name} holds {_CHAT_TOKEN}"
    return None


def _by_rope_ratio(config: Mapping[str, Any]) -> Found | None:
    ratio = config.get("rope_ratio")
    if not isinstance(ratio, (int, float)) or ratio == 1:
        return None
    # The released ones: 16 divides positions (chatglm2-6b-32k); 50 and 500 multiply the base (chatglm3-6b-32k, -128k).
    if ratio <= _LARGEST_LINEAR_RATIO:
        return "chatglm2", f"rope_ratio {ratio:g} is a usual division of positions"
    return "chatglm3", f"rope_ratio {ratio:g} is a usual multiple of the rotary base"


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. Fetch it again.") from None
    return value if isinstance(value, dict) else {}
