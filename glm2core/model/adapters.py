"""Adapters in peft's format, tied to the base they were trained on; and loading of any tuned folder.

models/tuned/
    adapter_config.json, adapter_model.safetensors      peft's own
    base.json       the base's path and fingerprint, its RoPE scaling, bits, and how positions count
    base/           only where the base was made from scratch: nobody else has it
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from transformers import PreTrainedModel

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.files import project_root, resolve_path, write_json
from glm2core.hardware import computes_in
from glm2core.model.loading import fingerprint, load_model, parameter_count, read_config
from glm2core.model.rope import RopeScaling
from glm2core.params import LoraParams, PrefixParams

_ADAPTER = "adapter_config.json"
_BASE = "base.json"
_OWN_BASE = "base"


class BaseReference(BaseModel):
    """Which network an adapter belongs to, and how it was set up while the adapter was trained.

    Args:
        path: the base's folder, against the project root; null = `base/` beside the adapter.
        fingerprint: of the base's weights and config.
        bits: of the quantized weights; null = not quantized.
        family: as `load_model` takes it.
        rope: scaling on top of the base's own config; null = none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None
    fingerprint: str
    bits: Literal[4, 8] | None = None
    family: str = "auto"
    rope: RopeScaling | None = None

    @model_validator(mode="before")
    @classmethod
    def _three_keys_of_older_files(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "rope_type" not in values:
            return values
        old = {name: values[f"rope_{name}"] for name in ("type", "factor", "unit") if f"rope_{name}" in values}
        kept = {key: value for key, value in values.items() if key.removeprefix("rope_") not in old}
        return {**kept, "rope": None if old["type"] is None else old}


def reference_to(
    folder: Path, own: bool, *, bits: Literal[4, 8] | None = None, family: str = "auto", rope: RopeScaling | None = None
) -> BaseReference:
    """Describe the base in `folder`; `own` says that it will be kept beside the adapter."""
    path = None if own else _against_root(folder)
    return BaseReference(path=path, fingerprint=fingerprint(folder), bits=bits, family=family, rope=rope)


def adapt(model: PreTrainedModel, method: str, lora: LoraParams, prefix: PrefixParams) -> PeftModel:
    """Freeze `model` (quantized or not) and put an adapter on it; the adapter's weights are fp32."""
    if method == "ptuning" and model.config.pre_seq_len:
        raise UserError(
            f"train.method is ptuning, but the base has a P-tuning prefix of {model.config.pre_seq_len} already, which "
            "a new one would replace. Name the base without it, or set train.method to full or lora."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = _prefix_config(model, prefix) if method == "ptuning" else _lora_config(lora)
    attach_prefix_length(model, config)
    return get_peft_model(model, config)


def multiplies_in_half(method: str, dtype: torch.dtype, device: str) -> bool:
    """Whether an adapter's fp32 weights are multiplied in bf16: on a GPU, where fp32 products are many times slower."""
    computes = computes_in(dtype, torch.device(device))
    return method in ("lora", "qlora") and dtype == torch.bfloat16 and device == "cuda" and computes


def load_base(
    folder: Path,
    reference: BaseReference,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    quantized: bool = True,
    notice: Notice = print,
) -> PreTrainedModel:
    """The base as the adapter knows it: quantized first, so that adapting comes after."""
    return load_model(
        folder,
        dtype=dtype,
        device=device,
        family=reference.family,
        rope=reference.rope,
        bits=reference.bits if quantized else None,
        notice=notice,
    )


def attach_prefix_length(model: PreTrainedModel, config: PeftConfig) -> None:
    """Tell the network about a P-tuning prefix: it takes up no position, though peft counts it."""
    if isinstance(config, PrefixTuningConfig):
        model.config.pre_seq_len = config.num_virtual_tokens


def save_adapter(model: PeftModel, folder: Path, reference: BaseReference, base: Path) -> None:
    """Write an adapter, and its base beside it where nobody else has that."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = reference.path or _OWN_BASE
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card template, with nothing filled in
    write_json(folder / _BASE, reference.model_dump())
    if reference.path is None:
        shutil.copytree(base, folder / _OWN_BASE)


def load_tuned(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    quantized: bool = True,
    base: Path | None = None,
    notice: Notice = print,
) -> PreTrainedModel | PeftModel:
    """The network in a tuned folder, in eval mode: full weights, or an adapter on its base.

    Args:
        folder: `models/tuned`, or any folder that `load_model` reads.
        base: of a released P-tuning prefix alone; None = as its base.json says.
        quantized: False loads the base of a quantized adapter in `dtype` (to merge and export).

    Raises:
        UserError: the base is missing, or isn't the one the adapter was trained on.
    """
    if not (folder / _ADAPTER).is_file():
        return load_model(folder, dtype=dtype, device=device, base=base, notice=notice)
    if base is not None:
        raise UserError(f"{folder} is an adapter, whose base its {_BASE} names. Leave out --base.")
    network, reference = _checked_base(folder)
    model = load_base(network, reference, dtype=dtype, device=device, quantized=quantized, notice=notice)
    attach_prefix_length(model, PeftConfig.from_pretrained(str(folder)))
    return PeftModel.from_pretrained(model, str(folder)).eval()


def base_of(folder: Path) -> tuple[Path, BaseReference] | None:
    """Where the base of an adapter's folder lies, and how the adapter knows it; None for full weights.

    Raises:
        UserError: the base is missing, or isn't the one the adapter was trained on.
    """
    return _checked_base(folder) if (folder / _ADAPTER).is_file() else None


def base_folder(folder: Path) -> Path | None:
    """Where the base of an adapter's folder lies; None for full weights.

    Raises:
        UserError: it is an adapter without `base.json`.
    """
    return _place(folder, _read_reference(folder)) if (folder / _ADAPTER).is_file() else None


def network_parameters(folder: Path) -> int:
    """Numbers in the network that `load_tuned` would load from a folder; an adapter's own, a few, are not counted.

    Raises:
        UserError: no config.json there, or an adapter's base is missing.
    """
    if (folder / _ADAPTER).is_file():
        reference = _read_reference(folder)
        base = _place(folder, reference)
        _require_base(folder, base, reference)
        folder = base
    return parameter_count(read_config(folder, family="chatglm2", notice=lambda sentence: None))


def _lora_config(lora: LoraParams) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )


def _prefix_config(model: PreTrainedModel, prefix: PrefixParams) -> PrefixTuningConfig:
    # Sizes are given outright: peft would read keys that this family's config names otherwise.
    config = model.config
    return PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=prefix.length,
        num_layers=config.num_layers,
        num_attention_heads=config.multi_query_group_num,
        token_dim=config.multi_query_group_num * config.kv_channels,
        encoder_hidden_size=config.hidden_size,
        num_transformer_submodules=1,
    )


def _checked_base(folder: Path) -> tuple[Path, BaseReference]:
    reference = _read_reference(folder)
    base = _place(folder, reference)
    _require_same_base(folder, base, reference)
    return base, reference


def _place(folder: Path, reference: BaseReference) -> Path:
    return folder / _OWN_BASE if reference.path is None else resolve_path(reference.path)


def _read_reference(folder: Path) -> BaseReference:
    file = folder / _BASE
    try:
        return BaseReference.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds an adapter but no {_BASE}, so its base is unknown. Tune it with this pipeline, "
            "or merge it into its base elsewhere and name the merged folder."
        ) from None
    except (ValueError, ValidationError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _require_base(folder: Path, base: Path, reference: BaseReference) -> None:
    if not base.is_dir():
        raise UserError(
            f"{folder} is an adapter on {reference.path}, and {base} does not exist. "
            "Put the base weights there, or run the pipeline again."
        )


def _require_same_base(folder: Path, base: Path, reference: BaseReference) -> None:
    _require_base(folder, base, reference)
    found = fingerprint(base)
    if found != reference.fingerprint:
        raise UserError(
            f"{folder} was trained on another base: {base} has the fingerprint {found[:12]}, "
            f"the adapter's base had {reference.fingerprint[:12]}. Restore those weights, or tune again on these."
        )


def _against_root(folder: Path) -> str:
    """The path to keep: relative inside the project, so that the folder may move with it."""
    absolute, root = folder.resolve(), project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()
