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
        Positions [B, S], ascending, and their labels [B, S]. `S` is the number of supervised labels in the row that has
        the most of them, but at least 1. Rows with fewer labels are filled with positions whose label is IGNORED.
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
    """Compute the cross-entropy of the labels that `supervised_positions` returns.

    The output layer processes chunks of positions, and backward recomputes each chunk's logits. So the logits [N, V] of
    all positions are never in memory together. If a batch fits into one chunk, nothing is recomputed.

    Args:
        hidden: [B, S, C], the hidden states at these positions.
        targets: [B, S]; IGNORED = not supervised. Targets should be on the CPU, because a step would have to wait for a
            GPU to count them.
        output_layer: the linear layer C -> V.
        num_items_in_batch: divisor of the summed loss; None = the number of supervised positions, which gives the mean.
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
            f"label {int(wrong[0])} is outside the vocabulary of {vocabulary}. Use {IGNORED} where nothing is "
            "supervised, and use the tokenizer that belongs to this model"
        )


def _losses(hidden: Tensor, labels: Tensor, output_layer: nn.Linear, reduction: str) -> Tensor:
    """The sum of the loss over all positions (`sum`), or the loss of each position (`none`)."""
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
