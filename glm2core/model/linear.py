"""Matrix multiplications with half-precision weights on a device without half-precision arithmetic.

A CPU can emulate such a multiplication, but this takes about 100 times as long as fp32. Here, one block of the
weight's rows at a time is widened, which means converted to fp32 without any loss. The widened block lies in a buffer
and is multiplied before the next block overwrites the buffer. So a multiplication needs only the memory of
half-precision weights, but has the speed of fp32 (`python -m benchmarks.products`).

Shapes: `M` rows of the input, `I` input and `O` output channels.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from glm2core.hardware import computes_in, product_dtype

# Number of elements in a widened block. A large block is faster for many input rows. For few rows (the next token of an
# answer), a small block is faster because it is still in cache when it is multiplied. Both sizes were measured.
WIDENED_ELEMENTS, _FEW_ROWS_ELEMENTS, _FEW_ROWS = 1 << 22, 1 << 20, 8


class Linear(nn.Linear):
    """An nn.Linear that widens half-precision weights to fp32 if the device can't multiply in their dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., I] to [..., O], in the dtype of `input`."""
        if not _is_widened(input, self.weight):
            return F.linear(input, self.weight, self.bias)
        return widened_linear(input, self.weight, self.bias)


def widened_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear as with `weight.float()` for a half-precision weight [O, I]; return it in the input's dtype.

    The weight's gradient is rounded once, to the weight's dtype.
    """
    result: Tensor = _WidenedLinear.apply(inputs.float(), weight, bias)
    return result.to(inputs.dtype)


def times_weight(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply `rows` [M, O] by a frozen weight [O, I] as `Linear` would, which gives its input's gradient [M, I]."""
    if not _is_widened(rows, weight):
        return rows @ weight.to(rows.dtype)
    result = rows.new_zeros(len(rows), weight.shape[1], dtype=torch.float32)
    for block, wide in _widened_blocks(weight, len(rows)):
        result.addmm_(rows[:, block].float(), wide)
    return result.to(rows.dtype)


def wide_products() -> TorchFunctionMode:
    """A context in which networks of plain torch modules never multiply in a dtype that the device can't compute in."""
    return _WideProducts()


def _is_widened(inputs: Tensor, weight: Tensor) -> bool:
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    if weight.dtype == inputs.dtype and computes_in(weight.dtype, inputs.device):
        return False
    return inputs.is_meta or not torch.is_autocast_enabled(inputs.device.type)  # autocast decides itself


class _WidenedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map fp32 [..., I] to fp32 [..., O]."""
        ctx.save_for_backward(inputs, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        rows = inputs.flatten(0, -2)  # [M, I]
        outputs = inputs.new_empty(len(rows), len(weight))
        for block, wide in _widened_blocks(weight, len(rows)):
            torch.mm(rows, wide.T, out=outputs[:, block])
        if bias is not None:
            outputs += bias
        return outputs.view(*inputs.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        rows, gradients = inputs.flatten(0, -2), gradient.flatten(0, -2)  # [M, I], [M, O]
        for_inputs = torch.zeros_like(rows) if of_inputs else None
        for_weight = torch.empty_like(weight) if of_weight else None
        for block, wide in _widened_blocks(weight, len(rows)):
            if for_inputs is not None:
                for_inputs.addmm_(gradients[:, block], wide)
            if for_weight is not None:
                for_weight[block] = torch.mm(gradients[:, block].T, rows, out=wide)
        for_bias = gradients.sum(0).to(ctx.bias_dtype) if of_bias else None
        return None if for_inputs is None else for_inputs.view_as(inputs), for_weight, for_bias


def _widened_blocks(weight: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Each block of rows of `weight` in fp32, in a buffer that the next block overwrites."""
    elements = WIDENED_ELEMENTS if rows > _FEW_ROWS else _FEW_ROWS_ELEMENTS
    size = min(len(weight), max(1, elements // weight.shape[1]))
    buffer = torch.empty(size, weight.shape[1], device=weight.device)
    for start in range(0, len(weight), size):
        block = slice(start, min(start + size, len(weight)))
        yield block, buffer[: block.stop - start].copy_(weight[block])


class _WideProducts(TorchFunctionMode):
    """Multiplies half-precision tensors and computes their attention in fp32, but returns half-precision results."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not (args and _is_half(args[0])):
            return func(*args, **kwargs)
        if func is F.linear:
            return widened_linear(*args, **kwargs)
        wide = (value.float() if _is_half(value) else value for value in args)
        named = {name: value.float() if _is_half(value) else value for name, value in kwargs.items()}
        return func(*wide, **named).to(args[0].dtype)


_PRODUCTS = {
    F.linear,
    F.scaled_dot_product_attention,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
    torch.mm,
    Tensor.bmm,
    Tensor.mm,
}


def _is_half(value: Any) -> bool:
    """Whether this is a tensor of a dtype in which its device can't multiply."""
    return isinstance(value, Tensor) and product_dtype(value.dtype, value.device) != value.dtype
