"""Save and load adapters in peft's format, each tied to the base on which it was trained; load any tuned folder.

models/tuned/
    adapter_config.json, adapter_model.safetensors      peft's own files
    base.json       the base's path and fingerprint, its RoPE scaling, bits and family
    base/           only if the base was made from scratch and so exists nowhere else
"""

import shutil
from pathlib import Path
from typing import Literal

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
    set_peft_model_state_dict,
)
from transformers import PreTrainedModel

from glm2core.console import Notice
from glm2core.errors import UserError, printable
from glm2core.files import project_root, resolve_path, write_json
from glm2core.hardware import computes_in
from glm2core.model.adapter_files import (
    BASE_FILE,
    BaseReference,
    adapter_weights,
    is_adapter,
    read_adapter,
    read_reference,
)
from glm2core.model.loading import fingerprint, load_model, parameter_count, read_config
from glm2core.model.lora import add_in_one_function
from glm2core.model.rope import RopeScaling
from glm2core.params import LoraParams, PrefixParams

_OWN_BASE = "base"


def reference_to(
    folder: Path,
    own: bool,
    *,
    bits: Literal[4, 8] | None = None,
    family: Literal["auto", "chatglm2", "chatglm3"] = "auto",
    rope: RopeScaling | None = None,
) -> BaseReference:
    """Describe the base in `folder`; `own` says whether the base will be saved beside the adapter."""
    path = None if own else _against_root(folder)
    return BaseReference(path=path, fingerprint=fingerprint(folder), bits=bits, family=family, rope=rope)


def adapt(model: PreTrainedModel, method: str, lora: LoraParams, prefix: PrefixParams) -> PeftModel:
    """Freeze `model` (quantized or not) and add an adapter with fp32 weights."""
    if method == "ptuning" and model.config.pre_seq_len:
        raise UserError(
            f"train.method is ptuning, but the base already has a P-tuning prefix of {model.config.pre_seq_len} "
            "tokens, which a new prefix would replace. Use the base without its prefix, or set train.method to full "
            "or lora."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = _prefix_config(model, prefix) if method == "ptuning" else _lora_config(lora)
    attach_prefix_length(model, config)
    adapted = get_peft_model(model, config)
    add_in_one_function(adapted)
    return adapted


def multiplies_in_half(method: str, dtype: torch.dtype, device: str) -> bool:
    """Whether peft's layers, which are used if the dropout is above 0, multiply an adapter's fp32 weights in `dtype`.

    These layers do so on a GPU, where matrix multiplications in fp32 are many times slower. lora.py's layers always
    use the dtype of their input.
    """
    computes = computes_in(dtype, torch.device(device))
    return method in ("lora", "qlora") and dtype.itemsize == 2 and device == "cuda" and computes


def load_base(
    folder: Path,
    reference: BaseReference,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    quantized: bool = True,
    notice: Notice = print,
) -> PreTrainedModel:
    """Load the base as the adapter's base.json describes it; the base is quantized before an adapter is added."""
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
    """Tell the network the length of a P-tuning prefix, which takes up no positions although peft counts it."""
    if isinstance(config, PrefixTuningConfig):
        model.config.pre_seq_len = config.num_virtual_tokens


def save_adapter(model: PeftModel, folder: Path, reference: BaseReference, base: Path) -> None:
    """Write an adapter and, if its base was made from scratch, a copy of the base beside it."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = reference.path or _OWN_BASE
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card template
    write_json(folder / BASE_FILE, reference.model_dump())
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
    """Load the network of a tuned folder in eval mode, from full weights or from an adapter and its base.

    Args:
        folder: `models/tuned`, or any folder that `load_model` reads.
        base: folder of an adapter's base if the base was moved (its weights must be the same), or folder of the network
            that belongs to a released P-tuning prefix; None = the path in base.json.
        quantized: whether a base that was quantized for training is quantized again; False = it is loaded in `dtype`
            (to merge and export).

    Raises:
        UserError: the base is missing, the adapter was trained on a different base, or tensors don't fit.
    """
    if not is_adapter(folder):
        return load_model(folder, dtype=dtype, device=device, base=base, notice=notice)
    adapter, (place, reference) = read_adapter(folder), _checked_base(folder, base)
    model = load_base(place, reference, dtype=dtype, device=device, quantized=quantized, notice=notice)
    weights = adapter_weights(folder, adapter, model)
    config = _prefix_config(model, adapter.prefix) if adapter.method == "ptuning" else _lora_config(adapter.lora)
    config.inference_mode = True
    attach_prefix_length(model, config)
    # peft gets values and tensors, not the folder, because it would ask the hub for missing files
    adapted = PeftModelForCausalLM(model, config)
    set_peft_model_state_dict(adapted, weights)
    add_in_one_function(adapted)
    return adapted.eval()


def base_of(folder: Path, base: Path | None = None) -> tuple[Path, BaseReference] | None:
    """Return the folder of an adapter's base and the adapter's reference to this base; None for full weights.

    Args:
        base: new place of the base, if it was moved.

    Raises:
        UserError: the base is missing, or the adapter was trained on a different base.
    """
    return _checked_base(folder, base) if is_adapter(folder) else None


def base_folder(folder: Path, base: Path | None = None) -> Path | None:
    """The folder of an adapter's base; None for full weights.

    Raises:
        UserError: the folder holds an adapter but no `base.json`.
    """
    return (base or _place(folder, read_reference(folder))) if is_adapter(folder) else None


def is_base_inside(folder: Path) -> bool:
    """Whether a folder's network equals its unchanged base once the adapter is switched off.

    This is true for LoRA without an added RoPE scaling. With a P-tuning prefix it is false, because the prefix's length
    still affects how positions are counted.

    Raises:
        UserError: the folder holds an adapter but no `base.json`.
    """
    return is_adapter(folder) and read_adapter(folder).method == "lora" and read_reference(folder).rope is None


def network_parameters(folder: Path, base: Path | None = None) -> int:
    """Number of parameters in the network that `load_tuned` would load, without the parameters of an adapter.

    Raises:
        UserError: there is no config.json, or an adapter's base is missing.
    """
    if is_adapter(folder):
        reference = read_reference(folder)
        place = base or _place(folder, reference)
        _require_base(folder, place, reference)
        folder = place
    return parameter_count(read_config(folder, family="chatglm2", notice=lambda sentence: None))


def _lora_config(lora: LoraParams) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )


def _prefix_config(model: PreTrainedModel, prefix: PrefixParams) -> PrefixTuningConfig:
    # Sizes are given explicitly, because peft would look for keys that have different names in this family's config.
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


def _checked_base(folder: Path, base: Path | None) -> tuple[Path, BaseReference]:
    reference = read_reference(folder)
    place = base or _place(folder, reference)
    _require_same_base(folder, place, reference)
    return place, reference


def _place(folder: Path, reference: BaseReference) -> Path:
    if reference.path is None:
        return folder / _OWN_BASE
    try:
        place = resolve_path(reference.path)
        place.is_dir()  # raises for a name that is too long
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder / BASE_FILE}: path is not a valid path here ({printable(str(error))[:200]}). Fix it."
        ) from None
    return place


def _require_base(folder: Path, base: Path, reference: BaseReference) -> None:
    if not base.is_dir():
        raise UserError(
            f"{folder} is an adapter on {printable(str(reference.path or _OWN_BASE))}, but {printable(str(base))} does "
            "not exist. Put the base weights into that folder, name their folder with --base, or run the pipeline "
            "again."
        )


def _require_same_base(folder: Path, base: Path, reference: BaseReference) -> None:
    _require_base(folder, base, reference)
    found = fingerprint(base)
    if found != reference.fingerprint:
        raise UserError(
            f"{folder} was trained on a different base: its base has the fingerprint {reference.fingerprint[:12]}, but "
            f"{base} has the fingerprint {found[:12]}. Restore the adapter's base, or tune again on the present base."
        )


def _against_root(folder: Path) -> str:
    """The path to store; it is relative if the folder is inside the project, so that the project can be moved."""
    absolute, root = folder.resolve(), project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()
