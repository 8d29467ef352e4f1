"""A widened product equals the product with the widened weight: forward, and both gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from glm2core.hardware import computes_in
from glm2core.model.linear import Linear, wide_products, widened_linear

HALVES = [torch.bfloat16, torch.float16]
CPU = torch.device("cpu")
# Output channels, input channels, rows: one block, several (with a rest), one row in blocks of its own size
SHAPES = [(24, 16, 5), (2100, 4096, 12), (300, 4096, 1)]


@pytest.fixture(autouse=True)
def _without_half_precision_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", "avx2")


def tensors(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias, and a gradient of the output."""
    outputs, inputs, rows = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(size, generator=generator)
        for size in ((1, rows, inputs), (outputs, inputs), (outputs,), (1, rows, outputs))
    )
    return x, (weight / inputs**0.5).to(dtype), bias.to(dtype), gradient


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_widened_product_is_that_of_the_widened_weight(
    shape: tuple[int, int, int], dtype: torch.dtype, biased: bool
) -> None:
    x, weight, bias, gradient = tensors(shape, dtype)
    leaves = [x.requires_grad_(), weight.requires_grad_(), *([bias.requires_grad_()] if biased else [])]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    found, expected = widened_linear(*leaves), F.linear(*wide)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    of_found, of_expected = torch.autograd.grad(found, leaves, gradient), torch.autograd.grad(expected, wide, gradient)
    assert [g.dtype for g in of_found] == [leaf.dtype for leaf in leaves]
    assert_close(of_found[0], of_expected[0], rtol=1e-5, atol=1e-5)
    for half, single in zip(of_found[1:], of_expected[1:], strict=True):
        assert_close(half.float(), single, rtol=torch.finfo(dtype).eps, atol=1e-4)  # rounded once


@pytest.mark.parametrize("dtype", HALVES)
def test_widening_is_exact(dtype: torch.dtype) -> None:
    """Every number of the dtype survives a product with one."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    assert torch.equal(widened_linear(torch.ones(1, 1), numbers[:, None]).flatten(), numbers.float())


def test_a_frozen_weight_has_no_gradient_and_the_input_its_own() -> None:
    x, weight, _, gradient = tensors(SHAPES[0], torch.bfloat16)
    widened_linear(x.requires_grad_(), weight).backward(gradient)
    assert weight.grad is None
    assert_close(x.grad, gradient @ weight.float())


@pytest.mark.parametrize("dtype", HALVES)
def test_a_linear_widens_only_where_it_must(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, _ = tensors(SHAPES[0], dtype)
    linear = Linear(16, 24).to(dtype)
    linear.load_state_dict({"weight": weight, "bias": bias})
    expected = F.linear(x, weight.float(), bias.float())
    assert_close(linear(x), expected)
    rounded = linear(x.to(dtype))
    assert rounded.dtype == dtype  # as any module's: the caller's dtype
    assert_close(rounded.float(), F.linear(x.to(dtype).float(), weight.float(), bias.float()).to(dtype).float())
    single = Linear(16, 24)
    assert torch.equal(single(x), F.linear(x, single.weight, single.bias))
    monkeypatch.delenv("GLM2CORE_CPU")
    if computes_in(dtype, CPU):
        assert torch.equal(linear(x.to(dtype)), F.linear(x.to(dtype), weight, bias))


@pytest.mark.parametrize("dtype", HALVES)
def test_plain_modules_of_others_are_widened_in_the_context(dtype: torch.dtype) -> None:
    x, weight, bias, _ = tensors(SHAPES[0], dtype)
    x = x.to(dtype)
    heads = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    with wide_products():
        linear, product = F.linear(x, weight, bias), x @ weight.T
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    assert {linear.dtype, product.dtype, attended.dtype} == {dtype}
    wide, single = heads.float(), weight.float()
    assert_close(linear, F.linear(x.float(), single, bias.float()).to(dtype))
    assert_close(product, (x.float() @ single.T).to(dtype))
    assert_close(attended, F.scaled_dot_product_attention(wide, wide, wide, is_causal=True).to(dtype))
