"""The loss, on supervised positions only."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glm2core.errors import UserError
from glm2core.labels import IGNORED

_CHUNK_ELEMENTS = 1 << 25  # fp32 logits alive at once: 128 MiB


def supervised_loss(
    hidden: Tensor, labels: Tensor, output_layer: nn.Linear, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of shifted labels.

    The output layer sees supervised positions only (in chat data a third of them or fewer), in chunks
    whose logits are recomputed in backward: [N, V] in fp32 never exists. A batch that fits one chunk
    recomputes nothing.

    Args:
        hidden: [B, T, C].
        labels: [B, T], IGNORED = not supervised; label t belongs to hidden state t - 1.
        output_layer: C -> V.
        num_items_in_batch: divides the sum; None = the number of supervised positions (then the mean).

    Returns:
        A scalar in fp32; 0 where nothing is supervised.

    Raises:
        UserError: labels of another shape, or outside the vocabulary.
    """
    if labels.shape != hidden.shape[:2]:
        raise UserError(f"labels must be of shape {list(hidden.shape[:2])}, as the input; got {list(labels.shape)}")
    targets = labels[:, 1:].to(hidden.device)
    supervised = targets != IGNORED
    targets = targets[supervised]  # [N]
    _check_range(targets, output_layer.out_features)
    rows = hidden[:, :-1][supervised]  # [N, C]
    total = _summed(rows, targets, output_layer)
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
