"""Reads the JSON files in a model's folder.

The files come with third-party weights, so each file is checked against a strict schema.

A schema names the keys that are read, with their types and bounds. All other keys are dropped, so settings that would
choose code, kernels, quantization or attention (`auto_map`, `attn_implementation`, `quantization_config`) never reach
transformers or peft. Each error message is one sentence.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from glm2core.errors import UserError, printable
from glm2core.files import refuse_lfs_pointer
from glm2core.params.messages import messages

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"

_MOST_BYTES = 4 << 20
_DEEPEST = 32
_MOST_SENTENCES = 4
_LONGEST = 400  # characters of a sentence, or of a name that is kept as evidence
_MOST_TOKEN = 2**31 - 1

Layers = Annotated[int, Field(ge=1, le=512)]
Channels = Annotated[int, Field(ge=1, le=1 << 16)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Rows = Annotated[int, Field(ge=1, le=1 << 21)]
Positions = Annotated[int, Field(ge=1, le=1 << 24)]
Scale = Annotated[float, Field(gt=0, le=1e6)]
Token = Annotated[int, Field(ge=0, le=_MOST_TOKEN)]
DtypeName = Literal["float16", "bfloat16", "float32", "float64"]


def _tokens(value: Any) -> Any:
    ids = value if isinstance(value, list) else [value]
    if len(ids) > 64 or any(type(token) is not int or not 0 <= token <= _MOST_TOKEN for token in ids):
        raise ValueError(f"must be a token's id, or a list of at most 64; got {printable(repr(value)[:80])}")
    return value


def _plain_name(name: str) -> str:
    plain = name not in ("", ".", "..") and not set(name) & set("/\\") and name.isprintable() and len(name) <= 255
    if not plain or not name.endswith((".bin", ".safetensors")):
        raise ValueError(
            "must be the plain name of a .bin or .safetensors file in the same folder, without a path; "
            f"got {printable(repr(name)[:80])}"
        )
    return name


Tokens = Annotated[Any, AfterValidator(_tokens)]
# Used to guess the family and printed as evidence; nothing is loaded from there.
Evidence = Annotated[str | None, BeforeValidator(lambda value: None if value is None else _cut(str(value)))]


class ModelFile(BaseModel):
    """The keys that are read from one file. Unknown keys are dropped, and NaN and infinity are rejected."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class RopeFile(ModelFile):
    """`rope_parameters` of config.json, in transformers' standard layout."""

    rope_type: Literal["default", "linear", "yarn"] = "default"
    rope_theta: Annotated[float, Field(gt=1, le=1e12)] = 10_000.0
    partial_rotary_factor: Annotated[float, Field(ge=0.5, le=0.5)] = 0.5
    factor: Scale | None = None
    original_max_position_embeddings: Positions | None = None
    attention_factor: Scale | None = None
    beta_fast: Scale | None = None
    beta_slow: Scale | None = None
    mscale: Scale | None = None
    mscale_all_dim: Scale | None = None
    truncate: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        needed = {"default": (), "linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}
        missing = [name for name in needed[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rope_type {self.rope_type} needs {' and '.join(missing)}")
        return self


class ConfigFile(ModelFile):
    """The keys of config.json, under the names that the released models use, or those of transformers.

    The defaults are the sizes of the released models; `given` returns only the values that the file contains.
    """

    num_layers: Layers = Field(28, validation_alias=AliasChoices("num_layers", "num_hidden_layers"))
    padded_vocab_size: Rows = Field(65024, validation_alias=AliasChoices("padded_vocab_size", "vocab_size"))
    hidden_size: Channels = 4096
    ffn_hidden_size: Annotated[int, Field(ge=1, le=1 << 19)] = Field(
        13696, validation_alias=AliasChoices("ffn_hidden_size", "intermediate_size")
    )
    kv_channels: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = Field(
        128, validation_alias=AliasChoices("kv_channels", "head_dim")
    )
    num_attention_heads: Heads = 32
    multi_query_group_num: Heads = Field(
        2, validation_alias=AliasChoices("multi_query_group_num", "num_key_value_heads")
    )
    seq_length: Positions = Field(32_768, validation_alias=AliasChoices("seq_length", "max_position_embeddings"))
    layernorm_epsilon: Annotated[float, Field(gt=0, le=0.1)] = Field(
        1e-5, validation_alias=AliasChoices("layernorm_epsilon", "rms_norm_eps")
    )
    initializer_range: Annotated[float, Field(ge=0, le=10)] = 0.02
    add_qkv_bias: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    family: Literal["auto", "chatglm2", "chatglm3"] = "auto"
    rope_ratio: Scale | None = None
    rope_parameters: RopeFile | None = None
    rope_scaling: None = None  # a different key for scaling, which the released code doesn't read
    pre_seq_len: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    prefix_projection: bool = False
    bos_token_id: Tokens | None = 1
    eos_token_id: Tokens | None = 2
    pad_token_id: Tokens | None = 0
    dtype: DtypeName | None = None
    torch_dtype: DtypeName | None = None
    name_or_path: Evidence = Field(None, validation_alias="_name_or_path", serialization_alias="_name_or_path")
    auto_map: Evidence = None
    # Switches with one supported value; ChatGLM2Config says which.
    quantization_bit: Annotated[int, Field(ge=0, le=64)] | None = None
    rmsnorm: bool = True
    post_layer_norm: bool = True
    add_bias_linear: bool = False
    multi_query_attention: bool = True
    apply_residual_connection_post_layernorm: bool = False
    interleaved_qkv: bool = False
    original_rope: bool = True
    fp32_residual_connection: bool = False
    hidden_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    attention_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _heads_share(self) -> Self:
        if self.num_attention_heads % self.multi_query_group_num:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of multi_query_group_num "
                f"({self.multi_query_group_num})"
            )
        return self

    def given(self) -> dict[str, Any]:
        """The values that the file contains, under the names of the released models."""
        values = self.model_dump(exclude_unset=True, by_alias=True)
        rope = self.rope_parameters
        if rope is not None:
            values["rope_parameters"] = rope.model_dump(exclude_none=True) if rope.model_fields_set else {}
        return values


class TokenizerFile(ModelFile):
    """The keys of tokenizer_config.json, which say how prompts are worded."""

    prompt_template: Literal["chatglm2", "chatglm3"] | None = None
    pair_format: Literal["glm2", "llama"] = "glm2"
    name_or_path: Evidence = None


class GenerationFile(ModelFile):
    """The keys of generation_config.json, which are defaults of transformers' generate()."""

    bos_token_id: Tokens | None = None
    eos_token_id: Tokens | None = None
    pad_token_id: Tokens | None = None
    do_sample: bool = False
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 21)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    max_length: Positions | None = None
    max_new_tokens: Positions | None = None
    use_cache: bool | None = None
    from_model_config: bool = Field(False, validation_alias="_from_model_config")

    def given(self) -> dict[str, Any]:
        """The settings that the file contains; empty if transformers derived the file from config.json."""
        sampling = set() if self.do_sample else {"temperature", "top_p", "top_k"}
        if self.from_model_config:
            return {}
        return self.model_dump(exclude_none=True, exclude_unset=True, exclude={"from_model_config", *sampling})


class IndexFile(ModelFile):
    """The keys of an *.index.json file, which say which file holds which tensor."""

    weight_map: Annotated[dict[str, Annotated[str, AfterValidator(_plain_name)]], Field(min_length=1)]


Schema = TypeVar("Schema", bound=ModelFile)


def read_model_file(file: Path, schema: type[Schema], *, most_bytes: int = _MOST_BYTES) -> Schema | None:
    """Read and check one JSON file; return None if it does not exist.

    Raises:
        UserError: `file` is not a file, is too long, is not JSON, or contains a value that the schema does not allow.
    """
    values = read_json(file, most_bytes)
    return None if values is None else checked(values, schema, file)


def read_config_file(folder: Path) -> ConfigFile | None:
    """Read and check a folder's config.json; return None if it does not exist.

    Raises:
        UserError: as for `read_model_file`, or because the file describes an unsupported network, which the error
            message names.
    """
    values = read_json(folder / CONFIG_FILE)
    return None if values is None else checked_config(values, folder / CONFIG_FILE)


def checked_config(values: Mapping[str, Any], place: Path) -> ConfigFile:
    """Check the values of the config.json at `place`.

    Raises:
        UserError: the file describes an unsupported network, or a value is wrong.
    """
    if (other := _other_network(values)) is not None:
        raise UserError(
            f"{place}: {other}. Only ChatGLM2, ChatGLM3 and CodeGeeX2 are supported (model_type 'chatglm'). "
            "Name a folder that contains one of these models."
        )
    return checked(values, ConfigFile, place)


def checked(values: Mapping[str, Any], schema: type[Schema], place: Path) -> Schema:
    """Check values against a schema.

    Raises:
        UserError: some values are wrong; the error message names the first ones, and says what each of them must be.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        found = messages(error, schema)
        said = "; ".join(_cut(sentence) for sentence in found[:_MOST_SENTENCES])
        left = error.error_count() - _MOST_SENTENCES
        more = f"; and {left:,} more" if left > 0 else ""
    raise UserError(f"{place}: {said}{more}. Fix the file, or fetch it again.")


def read_json(file: Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if the file does not exist.

    Raises:
        UserError: `file` is not a file, is too long, is not JSON, or does not hold one object.
    """
    if not file.exists() and not file.is_symlink():
        return None
    if not file.is_file():
        raise UserError(f"{file} is not a file. Replace it with the file that came with the weights.")
    try:
        with file.open("rb") as opened:
            content = opened.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}. Fix its permissions.") from None
    if len(content) > most_bytes:
        raise UserError(f"{file} has more than {most_bytes:,} bytes, more than such a file needs. Fetch it again.")
    refuse_lfs_pointer(file, content)
    try:
        values = json.loads(content.decode("utf-8"))
    except RecursionError:
        values = None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {_cut(str(error))}. Fetch it again.") from None
    if not isinstance(values, dict) or _is_deep(values, _DEEPEST):
        raise UserError(f"{file} must hold one JSON object, nested at most {_DEEPEST} deep. Fetch it again.")
    return values


def _other_network(values: Mapping[str, Any]) -> str | None:
    """Which unsupported network a config.json describes; None if it describes a supported one."""
    kind = values.get("model_type", "chatglm")
    if kind != "chatglm":
        return f"model_type is {_cut(repr(kind))}{_KNOWN.get(kind, '') if isinstance(kind, str) else ''}"
    if "vision_config" in values or "image_size" in values:
        return "this network also reads images, as GLM-4V and VisualGLM do"
    if {"inner_hidden_size", "position_encoding_2d", "max_sequence_length"} & set(values):
        return "this is ChatGLM-6B, the first generation, whose network and vocabulary are different"
    if values.get("padded_vocab_size", values.get("vocab_size")) == _GLM4_ROWS:
        return "this is GLM-4 or CodeGeeX4, whose tokenizer is of a different type"
    return None


_GLM4_ROWS = 151_552
_KNOWN = {
    "glm": " (transformers' own layout, as in an export of this project or in a GLM for transformers)",
    "glm4": " (GLM-4-0414)",
    "glm4_moe": " (GLM-4.5 or later)",
    "glm4v": " (GLM-4.1V)",
}


def _cut(text: str) -> str:
    text = printable(text[:_LONGEST])
    return text if len(text) < _LONGEST else f"{text[:_LONGEST]}..."


def _is_deep(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(v, (dict, list)) and (levels == 1 or _is_deep(v, levels - 1)) for v in inner)
