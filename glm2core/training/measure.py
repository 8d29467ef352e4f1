"""What training costs: model operations, the machine's own matrix rate, what forward keeps for backward."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Large enough to reach the machine's rate, small enough to take milliseconds.
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_TRIALS = 5


@dataclass(frozen=True)
class Cost:
    """Operations that a batch needs, whatever the implementation does besides (padding, recomputation).

    Args:
        config: the network's configuration.
        backward_factor: backward's share relative to forward: 2, or 1 where weights are frozen and only
            the gradient of the activations is needed.
    """

    config: Any
    backward_factor: int

    def operations(self, lengths: torch.Tensor, supervised: int) -> float:
        """Of forward and backward over rows of `lengths` real tokens, `supervised` of them in the loss."""
        c = self.config
        attended = c.num_attention_heads * c.kv_channels
        keys_and_values = 2 * c.multi_query_group_num * c.kv_channels
        block = c.hidden_size * (2 * attended + keys_and_values + 3 * c.ffn_hidden_size)
        linears = 2 * block * c.num_layers * int(lengths.sum())
        # Scores and context, over the causal half.
        attention = 2 * attended * c.num_layers * int((lengths * lengths).sum())
        output = 2 * c.padded_vocab_size * c.hidden_size * supervised
        return float((1 + self.backward_factor) * (linears + attention + output))


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large square matrix product: the best of a few."""
    side = _MATRIX_SIDE[device.type]
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    torch.matmul(a, b)
    best = min(_seconds_of_product(a, b) for _ in range(_TRIALS))
    return 2 * side**3 / best


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    _synchronize(a.device)
    start = time.perf_counter()
    torch.matmul(a, b)
    _synchronize(a.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept_for_backward(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that `forward` keeps for backward besides the model's parameters; of a model on the meta device, too."""
    kept: dict[int, int] = {}
    storages = []  # kept alive, so that an address stands for one storage
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
    """On the meta device torch takes attention apart, scores and all; real devices run a fused kernel."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            causal = query.shape[2] == key.shape[2]
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(query, key, value, is_causal=causal)[0]
        return func(*args, **(kwargs or {}))
