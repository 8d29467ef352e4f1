"""Measures how many bytes a forward pass keeps for the backward pass, on the meta device, without content."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def kept_for_backward(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return how many bytes `forward` keeps for the backward pass, without the model's parameters.

    The function also works on the meta device.
    """
    kept: dict[int, int] = {}
    storages = []  # kept alive, so that each address is one storage
    own = {_address(p) for p in model.parameters()}

    def remember(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            storages.append(tensor.untyped_storage())
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), _FusedAttention():
        forward()
    return sum(kept.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(TorchFunctionMode):
    """Use a fused kernel, as real devices do. On the meta device, torch would split attention and keep the scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            causal = query.shape[2] == key.shape[2]
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(query, key, value, is_causal=causal)[0]
        return func(*args, **(kwargs or {}))
