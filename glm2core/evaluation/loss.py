"""The held-out loss, both over all rows (with the same weight for every token) and by position in one long sequence.

Shapes: `B` rows, `T` tokens, `S` columns from the first supervised column on, `V` vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from glm2core.evaluation.generation import left_mask, left_padded, open_cache
from glm2core.journal import Memo, compute_only
from glm2core.labels import IGNORED
from glm2core.text.batching import length_sorted_batches
from glm2core.text.dataset import TokenizedDataset, TokenRow
from glm2core.text.tokenizer import PAD

_FIRST_BUCKET = 256


@dataclass(frozen=True)
class Loss:
    """Summed cross-entropy in nats, and the number of supervised tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss; infinite if it overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


@dataclass(frozen=True)
class Bucket:
    """Loss of the answers at positions `start` to `end`: `there` in the long sequence, `alone` in their own rows."""

    start: int
    end: int
    there: Loss
    alone: Loss


def token_losses(
    model: PreTrainedModel,
    dataset: TokenizedDataset,
    batch_tokens: int,
    advance: Callable[[int], None] | None = None,
    memo: Memo = compute_only,
) -> list[np.ndarray]:
    """Compute the cross-entropy of every supervised token in every row, in float64.

    Rows are padded on the left, so that all answers end in the same column. The output layer is therefore
    applied only to the last columns.

    Args:
        advance: called after each batch with the number of rows in the batch.
        memo: stores the losses of each batch, and returns losses that are already stored.
    """
    losses = [np.zeros(0)] * len(dataset)
    for batch in length_sorted_batches(dataset.lengths, batch_tokens, seed=0, epoch=0, shuffle=False):
        rows = [dataset.row(index) for index in batch]
        found = memo(["loss", *(dataset.ids[index] for index in batch)], partial(_batch_losses, model, rows))
        for index, row_losses in zip(batch, found, strict=True):
            losses[index] = np.array(row_losses, dtype=np.float64)
        if advance is not None:
            advance(len(batch))
    return losses


@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, rows: Sequence[TokenRow]) -> list[list[float]]:
    inputs = [input_ids for input_ids, _, _ in rows]
    labels = left_padded([row_labels for _, row_labels, _ in rows], IGNORED, model.device)  # [B, T]
    # The label in column t is predicted from column t - 1; the label in column 0 is not predicted.
    first = max(1, _first_supervised_column(labels))
    logits = model(
        input_ids=left_padded(inputs, PAD, model.device),
        attention_mask=left_mask(inputs, model.device),
        use_cache=False,
        logits_to_keep=labels.shape[1] - first + 1,
    ).logits  # [B, S + 1, V]
    return [
        _cross_entropy(row_logits, row_labels).tolist()
        for row_logits, row_labels in zip(logits[:, :-1], labels[:, first:], strict=True)
    ]


def held_out_loss(losses: Sequence[np.ndarray]) -> Loss:
    """The loss over all rows, with the same weight for every token."""
    return Loss(float(sum(row.sum() for row in losses)), sum(map(len, losses)))


@torch.inference_mode()
def loss_by_position(
    model: PreTrainedModel, dataset: TokenizedDataset, alone: Sequence[np.ndarray], length: int, chunk: int
) -> list[Bucket]:
    """Compute the loss of answers by their position in one long sequence of concatenated held-out rows.

    If the network fails beyond some position, the loss after that position is higher than the loss of the
    same tokens in their own short rows. The rows are shuffled, so that every part of the sequence contains
    rows of all sources.

    Args:
        alone: the result of `token_losses` for the rows.
        length: number of tokens in the sequence; the sequence is shorter if all rows together have fewer tokens.
        chunk: number of tokens that are read at once.

    Returns:
        Buckets, each of which ends at twice the position of the bucket before it; empty buckets are left out.
    """
    input_ids, labels, losses_alone = _end_to_end(dataset, alone, length)
    network, cache = open_cache(model)
    losses = [np.zeros(0)]
    for start in range(0, len(input_ids) - 1, chunk):
        targets = labels[start + 1 : start + 1 + chunk]
        places = np.flatnonzero(targets != IGNORED)
        kept = torch.from_numpy(places) if len(places) else torch.zeros(1, dtype=torch.long)
        logits = network(
            input_ids=torch.from_numpy(input_ids[None, start : start + chunk]).to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept.to(model.device),
        ).logits[0]
        if len(places):
            losses.append(_cross_entropy(logits, torch.from_numpy(targets[places]).to(model.device)))
    positions = np.flatnonzero(labels != IGNORED)
    return _buckets(positions, np.concatenate(losses), losses_alone[: len(positions)])


def _first_supervised_column(labels: Tensor) -> int:
    supervised = (labels != IGNORED).any(0).nonzero()
    return int(supervised[0]) if len(supervised) else labels.shape[1] - 1


def _cross_entropy(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Loss of each supervised token. logits [T, V], labels [T] -> float64 [supervised]."""
    chosen = labels != IGNORED
    losses: np.ndarray = (
        F.cross_entropy(logits[chosen].float(), labels[chosen], reduction="none").double().cpu().numpy()
    )
    return losses


def _end_to_end(
    dataset: TokenizedDataset, alone: Sequence[np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate shuffled rows up to `length` tokens: input_ids and labels [T], and the losses in their own rows."""
    order = np.random.default_rng(0).permutation(len(dataset))
    ends = np.cumsum(dataset.lengths[order])
    taken = order[: int(np.searchsorted(ends, length)) + 1]
    rows = [dataset.row(int(index)) for index in taken]
    input_ids = np.concatenate([ids for ids, _, _ in rows])[:length].astype(np.int64)
    labels = np.concatenate([row_labels for _, row_labels, _ in rows])[:length].astype(np.int64)
    return input_ids, labels, np.concatenate([alone[index] for index in taken])


def _buckets(positions: np.ndarray, losses: np.ndarray, alone: np.ndarray) -> list[Bucket]:
    buckets = []
    start, end = 0, _FIRST_BUCKET
    while len(positions) and start <= positions[-1]:
        inside = (positions >= start) & (positions < end)
        count = int(inside.sum())
        if count:
            buckets.append(
                Bucket(start, end, Loss(float(losses[inside].sum()), count), Loss(float(alone[inside].sum()), count))
            )
        start, end = end, 2 * end
    return buckets
