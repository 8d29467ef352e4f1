"""The network's configuration, under the released key names and under transformers' names for the same values."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from glm2core.errors import UserError
from glm2core.family import family_of, guess_member
from glm2core.model.rope import BASE, PARTIAL_ROTARY_FACTOR, RopeScaling, linear_rope, plain_rope
from glm2core.params.model_files import CONFIG_FILE, checked_config

# Switches in released config.json files. Only the released value is supported.
_FIXED_SWITCHES: dict[str, Any] = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "multi_query_attention": True,
    "apply_residual_connection_post_layernorm": False,
    "interleaved_qkv": False,
    "original_rope": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
# Released keys that do not affect the computation, or that concern remote code, which is never run.
_DROPPED = (
    "apply_query_key_layer_scaling",
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "classifier_dropout",
    "auto_map",
    "seed",
)


class ChatGLM2Config(PreTrainedConfig):
    """Shape and positions of a ChatGLM2-family network.

    A released config.json is read as it is. `rope_ratio` becomes `rope_parameters` according to
    `family`, and only `rope_parameters` is saved.

    Args:
        num_layers: number of blocks.
        padded_vocab_size: number of rows in the embedding and in the output layer.
        hidden_size: number of channels between blocks.
        ffn_hidden_size: number of channels inside the MLP, for the gate and for the up projection each.
        kv_channels: `D`, the number of channels per head; RoPE rotates the first half of them.
        num_attention_heads: number of query heads.
        multi_query_group_num: number of key/value heads.
        seq_length: number of positions for which the network is made.
        layernorm_epsilon: epsilon of the RMS norms.
        add_qkv_bias: whether `query_key_value` has a bias.
        family: chatglm2, chatglm3, or auto, which derives the family from the config (chatglm2 if in doubt).
        rope_parameters: transformers' standard dict for RoPE; if it is empty, it is derived from the released
            `rope_ratio`, or is plain RoPE if there is no ratio.
        pre_seq_len: length of a P-tuning v2 prefix, which does not shift positions; None = no prefix.
        prefix_projection: whether an MLP computes the prefix from its embedding.

    Raises:
        UserError: a released switch has an unsupported value, or the sizes don't fit together.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_group_num: int = 2
    seq_length: int = 32768
    layernorm_epsilon: float = 1e-5
    add_qkv_bias: bool = True
    family: str = "auto"
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unsupported(kwargs)
        self._check_sizes()
        rope_ratio = kwargs.pop("rope_ratio", None)
        if self.family == "auto":
            self.family = guess_member({**kwargs, "rope_ratio": rope_ratio})[0]
        if not self.rope_parameters:
            self.rope_parameters = _rope_of_ratio(rope_ratio, self.family)
        kept = {key: value for key, value in kwargs.items() if key not in {*_FIXED_SWITCHES, *_DROPPED}}
        super().__post_init__(**{"partial_rotary_factor": PARTIAL_ROTARY_FACTOR, **kept})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the config's values, and add the family that the files in the folder indicate."""
        values, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _with_family(values, pretrained_model_name_or_path), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Check the values of a config.json and build the config; the file's folder indicates the family.

        Raises:
            UserError: the values belong to a different kind of network, or a value is out of range.
        """
        place = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or ""
        values = checked_config(config_dict, Path(str(place), CONFIG_FILE)).given()
        return super().from_dict(_with_family(values, kwargs.get("name_or_path")), **kwargs)

    @property
    def rotary_channels(self) -> int:
        """`R`, the number of channels in a head that RoPE rotates."""
        return int(self.kv_channels * PARTIAL_ROTARY_FACTOR)

    def _check_sizes(self) -> None:
        if self.family not in ("auto", "chatglm2", "chatglm3"):
            raise UserError(f"config: family must be one of auto, chatglm2, chatglm3; got {self.family!r}")
        if self.num_attention_heads % self.multi_query_group_num:
            raise UserError(
                f"config: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"multi_query_group_num ({self.multi_query_group_num})"
            )
        if self.kv_channels % 8:
            raise UserError(f"config: kv_channels must be a multiple of 8; got {self.kv_channels}")
        if self.tie_word_embeddings:
            raise UserError("config: tie_word_embeddings true is not supported; the output layer has its own weights")


def apply_rope(config: ChatGLM2Config, scaling: RopeScaling | None) -> None:
    """Apply a scaling to `config`; None = leave the config unchanged.

    Raises:
        UserError: the config already has a scaling.
    """
    if scaling is None:
        return
    config.rope_parameters = scaling.parameters(config.rope_parameters, config.rotary_channels)
    if scaling.type != "default":
        config.seq_length = scaling.range


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for key, built in _FIXED_SWITCHES.items():
        if key in values and values[key] != built:
            raise UserError(f"config: {key} is {values[key]!r}, but only {built!r}, the released value, is supported")
    if values.get("quantization_bit"):
        raise UserError(
            f"config: quantization_bit is {values['quantization_bit']}, so these weights are packed integers. Load "
            "them with glm2core.model.loading.load_model, which unpacks them."
        )


def _with_family(values: dict[str, Any], folder: Any) -> dict[str, Any]:
    if folder is None or values.get("family", "auto") != "auto" or not Path(folder, "config.json").is_file():
        return values
    return {**values, "family": family_of(Path(folder))[0]}


def _rope_of_ratio(rope_ratio: float | None, family: str) -> dict[str, Any]:
    """chatglm2 divides positions by the ratio; chatglm3 multiplies the rotary base by it."""
    if rope_ratio is None or rope_ratio == 1:
        return plain_rope()
    if rope_ratio <= 0:
        raise UserError(f"config: rope_ratio must be above 0; got {rope_ratio}")
    return linear_rope(rope_ratio) if family == "chatglm2" else plain_rope(BASE * rope_ratio)
