"""The loss, on supervised positions only."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glm2core.errors import UserError
from glm2core.labels import IGNORED

_CHUNK_ELEMENTS = 1 << 25  # fp32 logits alive at once: 128 MiB


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that a supervised label is predicted from, and these labels.

    Args:
        labels: [B, T], IGNORED = not supervised; label t is predicted from position t - 1.

    Returns:
        Positions [B, S], ascending, and their labels [B, S]; `S` is the largest number in a row, at least 1. Rows with
        fewer are filled up with positions whose label is IGNORED.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    supervised = targets != IGNORED
    most = max(1, int(supervised.sum(1).max()))
    positions = supervised.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return positions, targets.gather(1, positions)


def supervised_loss(
    hidden: Tensor, targets: Tensor, output_layer: nn.Linear, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of the labels of `supervised_positions`.

    The output layer takes chunks of positions whose logits are recomputed in backward: [N, V] in fp32 never exists. A
    batch that fits one chunk recomputes nothing.

    Args:
        hidden: [B, S, C], of these positions.
        targets: [B, S]; IGNORED = not supervised.
        output_layer: C -> V.
        num_items_in_batch: divides the sum; None = the number of supervised positions (then the mean).

    Returns:
        A scalar in fp32; 0 where nothing is supervised.

    Raises:
        UserError: a label outside the vocabulary.
    """
    supervised = targets != IGNORED
    targets = targets[supervised]  # [N]
    _check_range(targets, output_layer.out_features)
    total = _summed(hidden[supervised], targets, output_layer)
    return total / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)


def _check_range(targets: Tensor, vocabulary: int) -> None:
    wrong = targets[(targets < 0) | (targets >= vocabulary)]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} is outside the vocabulary of {vocabulary}: use {IGNORED} where nothing is "
            "supervised, and the tokenizer that belongs to this model"
        )


def _summed(rows: Tensor, targets: Tensor, output_layer: nn.Linear) -> Tensor:
    size = max(1, _CHUNK_ELEMENTS // output_layer.out_features)
    if len(rows) <= size:
        return _cross_entropy(rows, targets, output_layer)
    parts = [
        checkpoint(_cross_entropy, row, target, output_layer, use_reentrant=False)
        for row, target in zip(rows.split(size), targets.split(size), strict=True)
    ]
    return torch.stack(parts).sum()


def _cross_entropy(rows: Tensor, targets: Tensor, output_layer: nn.Linear) -> Tensor:
    return F.cross_entropy(output_layer(rows).float(), targets, reduction="sum")
