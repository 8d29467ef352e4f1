"""Every kernel choice computes causal grouped-query attention."""

import pytest
import torch
from torch import Tensor, nn
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
    ("tokens", "keys"), [(1, 1), (1, 40), (7, 40), (40, 40), (300, 300)],
    ids=["first token", "next token", "later chunk", "short", "long"],
)  # fmt: skip
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


def test_eager_returns_weights() -> None:
    query = torch.randn(2, HEADS, 5, CHANNELS)
    key, value = (torch.randn(2, GROUPS, 5, CHANNELS) for _ in range(2))
    seen = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    hidden = torch.zeros(2, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
    context, weights = grouped_attention(nn.Module(), query, key, value, hidden, CHANNELS**-0.5)
    assert_close(context.double(), expected(query, key, value, seen), rtol=0, atol=1e-6)
    assert_close(weights.sum(-1), torch.ones(2, HEADS, 5))
    assert weights.triu(1).abs().max() == 0
