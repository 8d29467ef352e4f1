"""Detects which member of the family a model folder holds.

The member decides what `rope_ratio` means and how prompts are worded. The released files of both members contain the
same keys and shapes, and do not say what `rope_ratio` does. It divides positions in chatglm2, but it multiplies the
rotary base in chatglm3. TensorRT-LLM's models/chatglm/config.py and vllm-project/vllm#1806 face the same question.
The network asks for the family, and the tokenizer asks for the template; both get the same guess unless a file states
otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from glm2core.params.model_files import CONFIG_FILE, TOKENIZER_FILE, TokenizerFile, read_config_file, read_model_file

Family = Literal["chatglm2", "chatglm3"]
Found = tuple[Family, str]  # the family, and the evidence as text

_NAMES: dict[str, Family] = {
    "chatglm2": "chatglm2",
    "codegeex2": "chatglm2",
    "chatglm3": "chatglm3",
    "codegeex3": "chatglm3",
}
_TOKENIZER_FILES = (TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")
_CHAT_TOKEN = "<|user|>"
_LARGEST_LINEAR_RATIO = 16
_MOST_BYTES = 16 << 20  # of a file that is searched for the token


def family_of(folder: Path) -> Found:
    """Return the family that a folder's config.json states, or otherwise a guess, together with the evidence.

    Raises:
        UserError: a file in the folder is damaged, or belongs to a different kind of network.
    """
    config = _config(folder)
    return _stated(config, "family", CONFIG_FILE) or guess_member(config, folder)


def template_of(folder: Path) -> Found:
    """Return the prompt template that tokenizer_config.json states, or otherwise the family's, with the evidence.

    Raises:
        UserError: for the same reasons as in `family_of`.
    """
    return _stated(_tokenizer(folder), "prompt_template", TOKENIZER_FILE) or family_of(folder)


def guess_member(config: Mapping[str, Any], folder: Path | None = None) -> Found:
    """Guess the member from names, tokenizer files and `rope_ratio`, and return the guess with the evidence.

    If nothing shows the member, the guess is chatglm2.

    Args:
        config: the values in the model's config.json.
        folder: the model's folder, because its name and tokenizer files are evidence too; None = use only the config.
    """
    return (
        _by_name(config, folder)
        or _by_tokenizer(folder)
        or _by_rope_ratio(config)
        or ("chatglm2", "assumed, because no name, tokenizer file or rope_ratio shows the family")
    )


def _stated(values: Mapping[str, Any], key: str, file: str) -> Found | None:
    value = values.get(key)
    return (value, f"{file} states {key} {value}") if value in ("chatglm2", "chatglm3") else None


def _by_name(config: Mapping[str, Any], folder: Path | None) -> Found | None:
    places = {f"{CONFIG_FILE}'s {key}": config.get(key) for key in ("_name_or_path", "auto_map")}
    if folder is not None:
        tokenizer = _tokenizer(folder)
        places[f"{TOKENIZER_FILE}'s name_or_path"] = tokenizer.get("name_or_path")
        places["the folder's name"] = folder.resolve().name
    for place, value in places.items():
        for name, family in _NAMES.items():
            if name in str(value).lower():
                return family, f"{place} is {value!r}"
    return None


def _by_tokenizer(folder: Path | None) -> Found | None:
    if folder is None:
        return None
    # Tokenizer files that state a template were written by this project. They contain every member's tokens, so their
    # tokens are no evidence.
    stated = _stated(_tokenizer(folder), "prompt_template", TOKENIZER_FILE)
    if stated is not None:
        return stated
    for name in _TOKENIZER_FILES:
        if _holds_chat_token(folder / name):
            return "chatglm3", f"{name} holds {_CHAT_TOKEN}"
    return None


def _by_rope_ratio(config: Mapping[str, Any]) -> Found | None:
    ratio = config.get("rope_ratio")
    if not isinstance(ratio, (int, float)) or ratio == 1:
        return None
    # Released values: 16 divides positions (chatglm2-6b-32k); 50 and 500 multiply the base (chatglm3-6b-32k, -128k).
    if ratio <= _LARGEST_LINEAR_RATIO:
        return "chatglm2", f"rope_ratio {ratio:g} is usual as a divisor of positions"
    return "chatglm3", f"rope_ratio {ratio:g} is usual as a multiplier of the rotary base"


def _config(folder: Path) -> dict[str, Any]:
    config = read_config_file(folder)
    return {} if config is None else config.given()


def _tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = read_model_file(folder / TOKENIZER_FILE, TokenizerFile)
    return {} if tokenizer is None else tokenizer.model_dump()


def _holds_chat_token(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return _CHAT_TOKEN.encode() in opened.read(_MOST_BYTES)
