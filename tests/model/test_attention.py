"""Every kernel choice computes causal grouped-query attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from glm2core.model.attention import attention, grouped_attention

HEADS, GROUPS, CHANNELS = 8, 2, 16


def expected(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """The definition, in fp64: keys and values expanded, scores, softmax, weighted sum."""
    query, key, value = (x.double() for x in (query, key, value))
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) / CHANNELS**0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(
    ("tokens", "keys"),
    [(1, 1), (1, 40), (7, 40), (40, 40), (300, 300)],
    ids=["first token", "next token", "later chunk", "short", "long"],
)
@pytest.mark.parametrize("training", [False, True])
def test_as_defined(tokens: int, keys: int, dtype: torch.dtype, tolerance: float, padded: bool, training: bool) -> None:
    torch.manual_seed(tokens + keys)
    query = torch.randn(3, HEADS, tokens, CHANNELS, dtype=dtype, requires_grad=training)
    key, value = (torch.randn(3, GROUPS, keys, CHANNELS, dtype=dtype) for _ in range(2))
    seen = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens).expand(3, 1, -1, -1)
    if padded and keys > tokens:
        seen = seen.clone()
        seen[1, :, :, :2] = False
    mask = seen if padded else None
    with torch.set_grad_enabled(training):
        context, _ = attention(nn.Module(), query, key, value, mask, "sdpa")
    assert_close(context.double(), expected(query, key, value, seen), rtol=0, atol=tolerance)


@pytest.mark.parametrize("tokens", [2, 70, 300, 2200, 4500])
def test_blocks_are_the_flash_kernels_result_and_gradients(tokens: int) -> None:
    """Half precision on the CPU is computed in blocks: from one that is not full to more than `_SHAPES` of them."""
    torch.manual_seed(tokens)
    shapes = [(1, HEADS, tokens, CHANNELS), *[(1, GROUPS, tokens, CHANNELS)] * 2]
    half = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    whole = [tensor.detach().float().requires_grad_() for tensor in half]
    context, _ = attention(nn.Module(), *half, None, "sdpa")
    reference = F.scaled_dot_product_attention(*whole, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert_close(context.float(), reference, rtol=0, atol=0.03)
    gradient = torch.randn_like(reference)
    found = torch.autograd.grad(context, half, gradient.bfloat16())
    for ours, theirs in zip(found, torch.autograd.grad(reference, whole, gradient), strict=True):
        assert_close(ours.float(), theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))
    with torch.inference_mode():
        assert_close(attention(nn.Module(), *half, None, "sdpa")[0].float(), reference, rtol=0, atol=0.03)


@pytest.mark.parametrize("training", [False, True])
def test_large_scores_of_neighbours_are_told_apart(training: bool) -> None:
    """Heads that attend one token back have scores above 50 with differences below half precision."""
    torch.manual_seed(0)
    query, key = torch.randn(1, HEADS, 300, CHANNELS), torch.randn(1, GROUPS, 300, CHANNELS)
    query[..., :2] += 14
    key[..., :2] += 14
    half = [query.bfloat16(), key.bfloat16(), torch.randn(1, GROUPS, 300, CHANNELS).bfloat16()]
    reference = F.scaled_dot_product_attention(*(t.float() for t in half), is_causal=True, enable_gqa=True)
    assert (half[0].float() @ half[1].float().mT.repeat_interleave(4, 1) / CHANNELS**0.5).amax(-1).median() > 100
    with torch.set_grad_enabled(training):
        context, _ = attention(nn.Module(), half[0].requires_grad_(training), *half[1:], None, "sdpa")
    assert float((context.detach().float() - reference.transpose(1, 2)).abs().mean()) < 0.01


def test_eager_returns_weights() -> None:
    query = torch.randn(2, HEADS, 5, CHANNELS)
    key, value = (torch.randn(2, GROUPS, 5, CHANNELS) for _ in range(2))
    seen = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    hidden = torch.zeros(2, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
    context, weights = grouped_attention(nn.Module(), query, key, value, hidden, CHANNELS**-0.5)
    assert_close(context.double(), expected(query, key, value, seen), rtol=0, atol=1e-6)
    assert_close(weights.sum(-1), torch.ones(2, HEADS, 5))
    assert weights.triu(1).abs().max() == 0
