"""The loss, computed only at supervised positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glm2core.errors import UserError
from glm2core.hardware import sent
from glm2core.labels import IGNORED

_CHUNK_ELEMENTS = 1 << 25  # fp32 logits in memory at once: 128 MiB


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions from which supervised labels are predicted, and these labels.

    Args:
        labels: [B, T], IGNORED = not supervised; label t is predicted from position t - 1.

    Returns:
        Positions [B, S], ascending, and their labels [B, S]; `S` is the largest number of supervised labels in a row,
        but at least 1. Rows with fewer are filled with positions whose label is IGNORED.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    supervised = targets != IGNORED
    most = max(1, int(supervised.sum(1).max()))
    positions = supervised.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return positions, targets.gather(1, positions)


def supervised_loss(
    hidden: Tensor,
    targets: Tensor,
    output_layer: nn.Linear,
    num_items_in_batch: Tensor | int | None = None,
    *,
    by_row: bool = False,
) -> Tensor:
    """Cross-entropy of the labels of `supervised_positions`.

    The output layer processes chunks of positions, and backward recomputes their logits, so that all logits [N, V] are
    never in memory together. For a batch that fits one chunk nothing is recomputed.

    Args:
        hidden: [B, S, C], at these positions.
        targets: [B, S]; IGNORED = not supervised. Best on the CPU: to count them on a GPU, a step would wait for it.
        output_layer: C -> V.
        num_items_in_batch: divisor of the sum; None = the number of supervised positions, which gives the mean.
        by_row: whether each row is summed on its own.

    Returns:
        A scalar in fp32, 0 if nothing is supervised; with `by_row`, [B].

    Raises:
        UserError: a label is outside the vocabulary.
    """
    labels = targets[targets != IGNORED]  # [N]
    _check_range(labels, output_layer.out_features)
    divisor = max(len(labels), 1) if num_items_in_batch is None else num_items_in_batch
    places, labels = (
        sent(of_all, hidden.device) for of_all in ((targets != IGNORED).flatten().nonzero()[:, 0], labels)
    )
    chosen = hidden.flatten(0, 1).index_select(0, places)  # [N, C]
    losses = _losses(chosen, labels, output_layer, "none" if by_row else "sum")
    if by_row:
        losses = losses.new_zeros(targets.numel()).index_copy(0, places, losses).view(targets.shape).sum(1)
    return losses / divisor


def _check_range(targets: Tensor, vocabulary: int) -> None:
    wrong = targets[(targets < 0) | (targets >= vocabulary)]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} is outside the vocabulary of {vocabulary}: use {IGNORED} where nothing is "
            "supervised, and the tokenizer that belongs to this model"
        )


def _losses(hidden: Tensor, labels: Tensor, output_layer: nn.Linear, reduction: str) -> Tensor:
    """The loss over all positions (`sum`), or of each (`none`)."""
    size = max(1, _CHUNK_ELEMENTS // output_layer.out_features)
    if len(hidden) <= size:
        return _cross_entropy(hidden, labels, output_layer, reduction)
    parts = [
        checkpoint(_cross_entropy, part, label, output_layer, reduction, use_reentrant=False)
        for part, label in zip(hidden.split(size), labels.split(size), strict=True)
    ]
    return torch.stack(parts).sum() if reduction == "sum" else torch.cat(parts)


def _cross_entropy(hidden: Tensor, labels: Tensor, output_layer: nn.Linear, reduction: str) -> Tensor:
    return F.cross_entropy(output_layer(hidden).float(), labels, reduction=reduction)
