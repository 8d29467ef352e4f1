"""LoRA (Hu et al. 2021, arXiv:2106.09685) as one function with its own backward, which replaces peft's layers.

To add an update, peft makes six passes over every output in fp32, and keeps an fp32 copy of every input. Here, one
matrix multiplication adds the update in place, in the dtype of the activations. Backward adds the update's share of the
inputs' gradient in the same way. The parameters, their names and their files are the same as peft's. Only a single
plain adapter uses this function. peft's own code handles active dropout, several adapters, a variant such as DoRA,
merged weights, and an adapter that is switched off.

Shapes: `M` rows of the input, `I` input and `O` output channels, `F` channels inside the MLP, `r` the rank.
"""

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glm2core.model.layers import LinearAfterSwiGLU, swiglu, swiglu_gradient
from glm2core.model.linear import times_weight


def add_in_one_function(model: nn.Module) -> None:
    """Replace peft's LoRA layers in `model` with layers that have the same parameters but use this file's function."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear):
            model.set_submodule(name, _taking_over(layer))


class OneFunctionLora(LinearAfterSwiGLU, LoraLayer):
    """Our part of a LoRA layer. Each subclass also inherits from peft's layer for one kind of linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map [..., I] to [..., O], in the output dtype of the frozen linear layer."""
        adapter = self._only_adapter()
        if adapter is None or args or kwargs:
            of_peft: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return of_peft
        return self._with_update(x, adapter, gated=False)

    def of_gates(self, both: Tensor) -> Tensor:
        """Map `both` [..., 2F], gate first, to [..., O]; only `both` is kept, so backward recomputes SwiGLU."""
        adapter = self._only_adapter()
        if adapter is None:
            return self.forward(swiglu(both))
        return self._with_update(both, adapter, gated=True)

    def _only_adapter(self) -> str | None:
        """The active adapter, if it is the only one, plain LoRA, and without active dropout."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        dropout = self.lora_dropout[name]
        drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
        return None if drops else name

    def _with_update(self, inputs: Tensor, adapter: str, *, gated: bool) -> Tensor:
        lower, upper = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        updated: Tensor = _Updated.apply(inputs, lower, upper, self.base_layer, self.scaling[adapter], gated)
        return updated


class _Updated(torch.autograd.Function):
    """x Wᵀ + s (x Aᵀ) Bᵀ with a frozen W [O, I], and with A [r, I] and B [O, r] in fp32 or any other dtype."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, lower: Tensor, upper: Tensor, base: nn.Linear, scale: float, gated: bool
    ) -> Tensor:
        """Map [..., I], or with `gated` [..., 2F], to [..., O]."""
        activations = swiglu(inputs) if gated else inputs
        outputs: Tensor = base(activations)
        dtype = outputs.dtype
        lowered = activations.flatten(0, -2).to(dtype) @ lower.to(dtype).T  # [M, r]
        raising = upper.to(dtype).T.contiguous()  # [r, O]: both products of backward are faster in this layout
        outputs.flatten(0, -2).addmm_(lowered, raising, alpha=scale)
        ctx.save_for_backward(inputs, lower, lowered, raising)
        ctx.base, ctx.scale, ctx.gated, ctx.upper_dtype = base, scale, gated, upper.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        inputs, lower, lowered, raising = ctx.saved_tensors
        of_inputs, of_lower, of_upper = ctx.needs_input_grad[:3]
        gradients = gradient.flatten(0, -2)  # [M, O]
        of_lowered = (gradients @ raising.T).mul_(ctx.scale)  # [M, r]
        for_inputs = for_lower = for_upper = None
        if of_upper:
            for_upper = (lowered.T @ gradients).mul_(ctx.scale).T.to(ctx.upper_dtype)
        if of_lower:
            activations = swiglu(inputs) if ctx.gated else inputs
            for_lower = (of_lowered.T @ activations.flatten(0, -2).to(gradients.dtype)).to(lower.dtype)
        if of_inputs:
            for_rows = _times_frozen(gradients, ctx.base).addmm_(of_lowered, lower.to(gradients.dtype))  # [M, I]
            for_activations = for_rows.view(*inputs.shape[:-1], -1).to(inputs.dtype)
            for_inputs = swiglu_gradient(inputs, for_activations) if ctx.gated else for_activations
        return for_inputs, for_lower, for_upper, None, None, None


def _times_frozen(rows: Tensor, base: nn.Linear) -> Tensor:
    """Multiply rows [M, O] by the frozen weight [O, I] in the rows' dtype; bitsandbytes dequantizes the weight."""
    weight: Any = base.weight
    match get_bnb_param_type(weight):
        case "4bit":
            return rows @ dequantize_bnb_weight(weight).to(rows.dtype)
        case "8bit":
            state: Any = base.state
            return rows @ weight.data.to(rows.dtype).mul_(state.SCB[:, None] / 127)
        case _:
            return times_weight(rows, weight)


def _taking_over(layer: LoraLayer) -> nn.Module:
    """Our layer with all attributes of peft's layer, created as if it were unpickled."""
    kind = _one_function_kind(type(layer))
    ours = kind.__new__(kind)
    ours.__setstate__(layer.__dict__)
    return ours


@cache
def _one_function_kind(kind: type[LoraLayer]) -> Any:
    """Our subclass of peft's class for one kind of linear layer; only the two quantized kinds import bitsandbytes."""
    return type(f"OneFunction{kind.__name__}", (OneFunctionLora, kind), {})
