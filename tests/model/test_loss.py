"""The loss on supervised positions only."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.model.loss import supervised_loss


def inputs(vocabulary: int, rows: int = 3, tokens: int = 50) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, tokens, 8, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows, tokens))
    labels[:, ::3] = IGNORED
    return hidden, labels, nn.Linear(8, vocabulary, bias=False)


@pytest.mark.parametrize("vocabulary", [40, 1_200_000], ids=["one chunk", "chunks of 27 positions"])
def test_equals_the_mean_over_shifted_labels(vocabulary: int) -> None:
    hidden, labels, output = inputs(vocabulary, rows=1)
    loss = supervised_loss(hidden, labels, output)
    loss.backward()
    ours = hidden.grad, output.weight.grad
    hidden.grad = output.weight.grad = None
    expected = F.cross_entropy(output(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected.backward()
    assert_close(loss, expected)
    assert_close(ours, (hidden.grad, output.weight.grad), rtol=1e-4, atol=1e-7)


def test_the_caller_may_count_the_items() -> None:
    """Summed, then divided by the tokens of the whole accumulation."""
    hidden, labels, output = inputs(40)
    count = int((labels[:, 1:] != IGNORED).sum())
    mean = supervised_loss(hidden, labels, output)
    assert_close(supervised_loss(hidden, labels, output, num_items_in_batch=torch.tensor(4 * count)), mean / 4)


def test_nothing_supervised_is_zero_and_trains_nothing() -> None:
    hidden, labels, output = inputs(40)
    loss = supervised_loss(hidden, torch.full_like(labels, IGNORED), output)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_labels_of_another_shape_are_refused() -> None:
    hidden, labels, output = inputs(40)
    with pytest.raises(UserError, match=r"labels must be of shape \[3, 50\]"):
        supervised_loss(hidden, labels[:, :-1], output)


@pytest.mark.parametrize("bad", [-1, 40, 1000])
def test_labels_outside_the_vocabulary_are_refused(bad: int) -> None:
    hidden, labels, output = inputs(40)
    labels[1, 4] = bad
    with pytest.raises(UserError, match=f"label {bad}"):
        supervised_loss(hidden, labels, output)
