"""Builds the network that a method tunes, quantizes it if the method says so, and adds the adapter if there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from glm2core.console import Notice
from glm2core.files import atomic_path, resolve_path
from glm2core.model.adapter_files import BaseReference
from glm2core.model.adapters import adapt, load_base, reference_to, save_adapter
from glm2core.model.config import ChatGLM2Config
from glm2core.model.loading import load_model, new_model
from glm2core.model.queries import with_scaled_queries
from glm2core.model.rope import RopeScaling
from glm2core.params import ModelParams, TrainParams
from glm2core.training.distributed import is_first, meet


@dataclass(frozen=True)
class Prepared:
    """A network ready to train.

    Args:
        model: the network, in which only trainable parameters require gradients.
        base: folder of the adapter's base; None for the method full.
        reference: the adapter's reference to its base, as in base.json; None for the method full.
        query_scale: the factor by which attention queries are multiplied in the saved weights (method full only).
    """

    model: PreTrainedModel | PeftModel
    base: Path | None = None
    reference: BaseReference | None = None
    query_scale: float = 1.0

    @property
    def network(self) -> PreTrainedModel:
        """The network itself, inside any adapter."""
        network = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(network, PreTrainedModel)
        return network

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the full weights, or the adapter with the reference to its base.

        Args:
            weights: the whole weights, which are needed if the network's own weights are sharded.
        """
        if self.reference is None:
            if self.query_scale != 1:
                config = cast(ChatGLM2Config, self.network.config)
                weights = with_scaled_queries(weights or self.network.state_dict(), config, self.query_scale)
            self.network.save_pretrained(folder, state_dict=weights)
        else:
            assert isinstance(self.model, PeftModel) and self.base is not None
            save_adapter(self.model, folder, self.reference, self.base)


def prepare(
    model_params: ModelParams,
    params: TrainParams,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    work_folder: Path,
    notice: Notice = print,
) -> Prepared:
    """Build the network that `params.method` tunes.

    Args:
        vocab_size: number of tokens in the tokenizer, used for a network from scratch.
        work_folder: where an adapter's base is saved if it is made from scratch.
    """
    set_seed(params.seed)
    if params.method == "full":
        network = _full(model_params, params, vocab_size, dtype, device, notice)
        prepared = Prepared(network, query_scale=params.query_scale)
    else:
        prepared = _adapted(model_params, params, vocab_size, dtype, device, work_folder, notice)
    blocks = params.recomputed_blocks(prepared.network.config.num_layers)
    if blocks:
        _recompute(prepared.network, blocks)
    return prepared


def multiply_adapters_in_half(model: nn.Module) -> None:
    """Let LoRA's fp32 weights take the network's half-precision activations directly, for use under autocast.

    Otherwise peft would make an fp32 copy of every linear layer's input, and use this copy for dropout and the matrix
    multiplication.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False


def _full(
    model_params: ModelParams,
    params: TrainParams,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    notice: Notice,
) -> PreTrainedModel:
    model: nn.Module
    if model_params.base is None:
        model = _from_scratch(model_params, params, vocab_size, dtype)
    else:
        model = load_model(
            resolve_path(model_params.base),
            dtype=dtype,
            device=device,
            family=model_params.family,
            rope=RopeScaling.of(model_params.rope),
            notice=notice,
        )
    nn.Module.to(model, device).requires_grad_(True)
    assert isinstance(model, PreTrainedModel)
    return model


def _from_scratch(
    model_params: ModelParams, params: TrainParams, vocab_size: int, dtype: torch.dtype
) -> PreTrainedModel:
    return new_model(
        model_params.preset,
        vocab_size,
        dtype=dtype,
        rope=RopeScaling.of(model_params.rope),
        initialization=model_params.initialization,
        seed=params.seed,
    )


def _adapted(
    model_params: ModelParams,
    params: TrainParams,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    work_folder: Path,
    notice: Notice,
) -> Prepared:
    if model_params.base is None:
        base = work_folder / "base"
        if is_first():
            with atomic_path(base) as partial:
                _from_scratch(model_params, params, vocab_size, dtype).save_pretrained(partial)
        meet()
        # The config that was just written includes the RoPE scaling.
        reference = reference_to(base, own=True, bits=params.quantization_bits)
    else:
        base = resolve_path(model_params.base)
        rope = RopeScaling.of(model_params.rope)
        reference = reference_to(base, own=False, bits=params.quantization_bits, family=model_params.family, rope=rope)
    model = load_base(base, reference, dtype=dtype, device=device, notice=notice)
    return Prepared(adapt(model, params.method, params.lora, params.prefix), base, reference)


def _recompute(network: PreTrainedModel, blocks: int) -> None:
    """Make the first `blocks` blocks keep only their input, and recompute everything else in backward."""
    layers: Any = network.get_submodule("transformer.encoder.layers")
    options = {"use_reentrant": False}  # if True, adapters on frozen weights would get no gradient
    if hasattr(network, "activation_checkpointing_enable"):
        network.activation_checkpointing_enable(options)
    else:  # transformers before 5.2x
        network.gradient_checkpointing_enable(options)
    for layer in layers[blocks:]:
        layer.gradient_checkpointing = False
