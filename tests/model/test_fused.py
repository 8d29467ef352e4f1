"""Functions for which a GPU uses other kernels than a CPU: the same values, checked here on the CPU."""

import shutil

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glm2core.model.config import ChatGLM2Config
from glm2core.model.fused import Compiled, fused, has_compiler
from glm2core.model.layers import Normalization, _swiglu, _swiglu_gradient, normalized_by_torch, swiglu
from glm2core.model.rope import RotaryEmbedding, Turn, plain_rope, rotate, turned, yarn_rope

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_torch_is_ours(dtype: torch.dtype) -> None:
    """In bf16 as well: fp32 inside, rounded once."""
    hidden, gradient = drawn(3, 5, 64, dtype=dtype) * 3, drawn(3, 5, 64, dtype=dtype, seed=1)
    weight = 1 + drawn(64, dtype=dtype, seed=2) / 4
    found = []
    for norm in (Normalization.apply, normalized_by_torch):
        inputs = [t.detach().clone().requires_grad_() for t in (hidden, weight)]
        result = norm(*inputs, 1e-5)
        found.append((result.detach(), *torch.autograd.grad(result, inputs, gradient)))
    for ours, theirs in zip(*found, strict=True):
        assert_close(theirs, ours, **close(dtype))
    exact = hidden.double() * torch.rsqrt(hidden.double().square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert_close(found[1][0], exact.to(dtype), **close(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert normalized_by_torch(hidden, weight, 1e-5).equal(found[1][0])


@pytest.mark.parametrize("rope", [plain_rope(), yarn_rope(4, 2048)], ids=["plain", "yarn"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_turn_in_real_numbers_is_the_turn_in_complex_ones(rope: dict[str, object], dtype: torch.dtype) -> None:
    config = ChatGLM2Config(kv_channels=32)
    rotations = RotaryEmbedding(rope, config.rotary_channels)(torch.arange(40)[None] * 777)
    heads, gradient = drawn(2, 40, 3, 32, dtype=dtype), drawn(2, 40, 3, 32, dtype=dtype, seed=1)
    found = []
    for turn in (rotate, lambda h, r: Turn.apply(h, torch.view_as_real(r))):
        inputs = heads.clone().requires_grad_()
        result = turn(inputs, rotations)
        found.append((result.detach(), *torch.autograd.grad(result, inputs, gradient)))
    for ours, theirs in zip(*found, strict=True):
        assert_close(theirs, ours, rtol=1e-5 if dtype == torch.float32 else 0.008, atol=1e-6)


def test_a_cpu_keeps_the_functions_as_they_are() -> None:
    assert fused(swiglu, CPU) is swiglu


def test_a_compiler_is_triton_and_one_for_c(monkeypatch: pytest.MonkeyPatch) -> None:
    has_compiler.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not has_compiler()
    has_compiler.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for the CPU")
def test_compiled_functions_are_the_functions() -> None:
    parts = torch.view_as_real(RotaryEmbedding(plain_rope(), 16)(torch.arange(24)[None]))
    for tokens in (24, 17):  # shapes change from batch to batch
        both, gradient = drawn(2, tokens, 128, dtype=torch.float32), drawn(2, tokens, 64, dtype=torch.float32, seed=1)
        heads = drawn(2, tokens, 3, 32, dtype=torch.float32)
        for function, given in (
            (_swiglu, (both,)),
            (_swiglu_gradient, (both, gradient)),
            (turned, (heads, parts[:, :tokens])),
        ):
            compiled = Compiled(function)
            assert_close(compiled(*given), function(*given), rtol=1e-5, atol=1e-6)
            assert compiled.works


def test_a_compiler_that_does_not_work_leaves_the_function() -> None:
    def fails(tensor: Tensor) -> Tensor:
        """Refused by torch.compile with no break allowed inside."""
        torch._dynamo.graph_break()
        return tensor + 1

    compiled = Compiled(fails)
    compiled.compiled = torch.compile(fails, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert not compiled.works
