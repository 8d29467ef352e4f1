"""The files of an adapter's folder: this project's base.json and peft's adapter_config.json.

From peft's file, only what this project writes is read, which is plain LoRA on linear layers listed by name, or a
prefix. Options that change the computation are rejected, and so are regular expressions. No other key is passed to
peft.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from glm2core.errors import UserError
from glm2core.model.misfits import require_fit
from glm2core.model.rope import RopeScaling
from glm2core.model.weight_files import mapped_weights, require_finite
from glm2core.params import LoraParams, PrefixParams
from glm2core.params.model_files import ModelFile, read_model_file
from glm2core.params.train import LoraTarget

ADAPTER_FILE = "adapter_config.json"
BASE_FILE = "base.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "prompt_embeddings"
# peft's options that change the computation, unless they have one of the values in `_OFF`.
_OPTIONS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
_OFF: tuple[Any, ...] = (None, False, "none", [], {})


class BaseReference(ModelFile):
    """base.json: the network that an adapter belongs to, and how that network was set up for training.

    Args:
        path: the base's folder, relative to the project root; null = `base/` beside the adapter.
        fingerprint: fingerprint of the base's weights and config.
        bits: bits per quantized weight; null = not quantized.
        family: as in `load_model`.
        rope: scaling of positions in addition to the base's own config; null = none.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)] | None
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bits: Literal[4, 8] | None = None
    family: Literal["auto", "chatglm2", "chatglm3"] = "auto"
    rope: RopeScaling | None = None

    @model_validator(mode="before")
    @classmethod
    def _three_keys_of_older_files(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "rope_type" not in values:
            return values
        old = {name: values[f"rope_{name}"] for name in ("type", "factor", "unit") if f"rope_{name}" in values}
        kept = {key: value for key, value in values.items() if key.removeprefix("rope_") not in old}
        return {**kept, "rope": None if old["type"] is None else old}


class AdapterFile(ModelFile):
    """adapter_config.json."""

    peft_type: Literal["LORA", "PREFIX_TUNING"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    lora_alpha: Annotated[int, Field(ge=1, le=1 << 20)] = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    target_modules: Annotated[list[LoraTarget], Field(min_length=1, max_length=16)] | None = None
    num_virtual_tokens: Annotated[int, Field(ge=1, le=1 << 16)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _computes_what_is_built(cls, values: Any) -> Any:
        found = [key for key in _OPTIONS if isinstance(values, dict) and values.get(key) not in _OFF]
        if found:
            raise ValueError(
                f"{', '.join(found)} must not be set, because only what train.method lora and qlora write is supported"
            )
        return values

    @model_validator(mode="after")
    def _whole(self) -> Self:
        needed = "target_modules" if self.peft_type == "LORA" else "num_virtual_tokens"
        if getattr(self, needed) is None:
            raise ValueError(f"{needed} must be set if peft_type is {self.peft_type}")
        return self

    @property
    def method(self) -> Literal["lora", "ptuning"]:
        """The method's name in train.method."""
        return "lora" if self.peft_type == "LORA" else "ptuning"

    @property
    def lora(self) -> LoraParams:
        """The params of a LoRA adapter."""
        assert self.target_modules is not None
        return LoraParams(
            rank=self.r,
            alpha=self.lora_alpha,
            rslora=self.use_rslora,
            dropout=self.lora_dropout,
            targets=self.target_modules,
        )

    @property
    def prefix(self) -> PrefixParams:
        """The params of a P-tuning prefix."""
        assert self.num_virtual_tokens is not None
        return PrefixParams(length=self.num_virtual_tokens)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole network."""
    file = folder / ADAPTER_FILE
    return file.exists() or file.is_symlink()


def read_adapter(folder: Path) -> AdapterFile:
    """Read adapter_config.json.

    Raises:
        UserError: the file is missing, or contains something that this project would not write.
    """
    found = read_model_file(folder / ADAPTER_FILE, AdapterFile)
    if found is None:
        raise UserError(f"{folder} holds no {ADAPTER_FILE}. Name a folder with an adapter in it.")
    return found


def read_reference(folder: Path) -> BaseReference:
    """Read base.json.

    Raises:
        UserError: the file is missing or invalid.
    """
    found = read_model_file(folder / BASE_FILE, BaseReference)
    if found is None:
        raise UserError(
            f"{folder} holds an adapter but no {BASE_FILE}, so its base is unknown. Tune an adapter with "
            "this pipeline, or merge this adapter into its base with a different tool and name the merged folder."
        )
    return found


def adapter_weights(folder: Path, adapter: AdapterFile, network: PreTrainedModel) -> dict[str, Tensor]:
    """Return an adapter's tensors, after checking them as strictly as a network's tensors.

    Args:
        network: the base, quantized or not.

    Raises:
        UserError: there are no weights; or a tensor is missing, is unexpected, has the wrong shape or holds NaN.
    """
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{folder} holds an adapter without its weights: there is no {' or '.join(_WEIGHTS)}. Copy the weights to "
            "this folder."
        )
    weights = mapped_weights([file])
    expected = (
        _lora_shapes(adapter.lora, network)
        if adapter.method == "lora"
        else _prefix_shape(adapter.prefix, network.config)
    )
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    require_fit(shapes, expected, f"{file}: the weights do not fit {ADAPTER_FILE} and the base")
    require_finite(weights, folder)
    return weights


def _lora_shapes(lora: LoraParams, network: nn.Module) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora.targets:
            place = f"base_model.model.{name}"
            shapes[f"{place}.lora_A.weight"] = (lora.rank, module.in_features)
            shapes[f"{place}.lora_B.weight"] = (module.out_features, lora.rank)
    return shapes


def _prefix_shape(prefix: PrefixParams, config: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    width = config.num_layers * 2 * config.multi_query_group_num * config.kv_channels
    return {_PREFIX: (prefix.length, width)}
