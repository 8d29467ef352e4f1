"""The loss on supervised positions only."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.model.loss import supervised_loss, supervised_positions


def inputs(vocabulary: int, rows: int = 3, tokens: int = 50) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, tokens, 8, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows, tokens))
    labels[:, ::3] = IGNORED
    return hidden, labels, nn.Linear(8, vocabulary, bias=False)


def loss_of(
    hidden: torch.Tensor, labels: torch.Tensor, output: nn.Linear, items: torch.Tensor | None = None
) -> torch.Tensor:
    """As the network calls it: hidden states at the supervised positions only."""
    positions, targets = supervised_positions(labels)
    picked = torch.stack([row[places] for row, places in zip(hidden, positions, strict=True)])
    return supervised_loss(picked, targets, output, items)


@pytest.mark.parametrize("vocabulary", [40, 1_200_000], ids=["one chunk", "chunks of 27 positions"])
def test_equals_the_mean_over_shifted_labels(vocabulary: int) -> None:
    hidden, labels, output = inputs(vocabulary, rows=1)
    loss = loss_of(hidden, labels, output)
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
    mean = loss_of(hidden, labels, output)
    assert_close(loss_of(hidden, labels, output, torch.tensor(4 * count)), mean / 4)


@pytest.mark.parametrize("vocabulary", [40, 1_200_000], ids=["one chunk", "chunks of 27 positions"])
def test_by_row_it_is_the_sum_of_each_row(vocabulary: int) -> None:
    hidden, labels, output = inputs(vocabulary)
    labels[1] = IGNORED
    positions, targets = supervised_positions(labels)
    picked = torch.stack([row[places] for row, places in zip(hidden, positions, strict=True)])
    apart = supervised_loss(picked, targets, output, 1, by_row=True)
    expected = [loss_of(hidden[row : row + 1], labels[row : row + 1], output, torch.tensor(1)) for row in range(3)]
    assert_close(apart, torch.stack(expected))
    assert apart[1] == 0


def test_nothing_supervised_is_zero_and_trains_nothing() -> None:
    hidden, labels, output = inputs(40)
    loss = loss_of(hidden, torch.full_like(labels, IGNORED), output)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_positions_are_in_order_and_rows_are_filled_up() -> None:
    ignored = IGNORED
    labels = torch.tensor([[ignored, 7, ignored, 8, 9], [5, ignored, ignored, ignored, 6], [ignored] * 5])
    positions, targets = supervised_positions(labels)
    assert targets.tolist() == [[7, 8, 9], [6, ignored, ignored], [ignored] * 3]
    assert positions[0].tolist() == [0, 2, 3]
    assert positions[1, 0] == 3
    assert supervised_positions(torch.tensor([[4]]))[1].tolist() == [[ignored]]  # nothing comes before it


@pytest.mark.parametrize("bad", [-1, 40, 1000])
def test_labels_outside_the_vocabulary_are_refused(bad: int) -> None:
    hidden, labels, output = inputs(40)
    labels[1, 4] = bad
    with pytest.raises(UserError, match=f"label {bad}"):
        loss_of(hidden, labels, output)
