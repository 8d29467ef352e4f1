"""Memory-saving backward functions, against autograd's."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from glm2core.estimate.meta import kept_for_backward
from glm2core.model.layers import Normalization, SwiGLU


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def with_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], into: Tensor) -> list[Tensor | None]:
    """The function's value, and the gradient of each input."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = function(*leaves)
    value.backward(into)
    return [value, *(leaf.grad for leaf in leaves)]


def plain(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@given(st.integers(1, 5), st.integers(1, 40), DTYPES, st.integers(0, 99))
def test_swiglu_is_autograds_to_the_bit(tokens: int, channels: int, dtype: torch.dtype, seed: int):
    both, into = random((2, tokens, 2 * channels), dtype, seed), random((2, tokens, channels), dtype, seed + 1)
    for ours, theirs in zip(*(with_gradients(f, (both,), into) for f in (SwiGLU.apply, plain)), strict=True):
        assert torch.equal(ours, theirs)


@given(st.integers(1, 5), st.integers(1, 40), DTYPES, st.integers(0, 99))
def test_the_norm_is_autograds_to_the_bit(tokens: int, channels: int, dtype: torch.dtype, seed: int):
    hidden, into = (random((2, tokens, channels), dtype, seed + number) for number in range(2))
    weight = random((channels,), dtype, seed + 2)
    functions = (Normalization.apply, Normalization.values)
    ours, theirs = (
        with_gradients(lambda h, w, f=f: f(h, w, 1e-5), (hidden, weight), into)  # type: ignore[misc]
        for f in functions
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_norm_gives_no_gradient_to_what_is_frozen(frozen: int):
    inputs = [torch.randn(3, 8, requires_grad=frozen != 0), torch.ones(8, requires_grad=frozen != 1)]
    Normalization.apply(*inputs, 1e-5).sum().backward()
    assert inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


@pytest.mark.parametrize(
    ("function", "numbers"),
    [(SwiGLU.apply, 80), (plain, 120), (lambda hidden: Normalization.apply(hidden, torch.ones(40), 1e-5), 80 + 40)],
)
def test_nothing_but_the_input_is_kept(function: Callable[[Tensor], Tensor], numbers: int):
    inputs = torch.randn(2, 40, requires_grad=True)
    assert kept_for_backward(nn.Identity(), lambda: function(inputs)) == 4 * numbers
