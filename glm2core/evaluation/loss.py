"""Held-out loss: over all rows, with the same weight for every token, and by position in one long sequence.

Shapes: `B` rows, `T` tokens, `S` columns from the first supervised one, `V` vocabulary.
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
        """exp of the mean loss; infinite if that overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


@dataclass(frozen=True)
class Bucket:
    """The answers at positions `start` to `end` of the sequence: their loss there, and their loss in their own rows."""

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
    """Cross-entropy of each supervised token of each row, in float64.

    Rows are padded on the left, so that all answers end in the same column, and the output layer is applied
    only to the last columns.

    Args:
        advance: called with the number of rows done since the last call.
        memo: reads and stores the losses of a batch.
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
    # The label in column t is predicted from column t - 1; the one in column 0 is not predicted.
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
    """The loss over all rows; every token has the same weight."""
    return Loss(float(sum(row.sum() for row in losses)), sum(map(len, losses)))


@torch.inference_mode()
def loss_by_position(
    model: PreTrainedModel, dataset: TokenizedDataset, alone: Sequence[np.ndarray], length: int, chunk: int
) -> list[Bucket]:
    """Loss of answers by position, in one sequence of concatenated held-out rows.

    If the network fails beyond some position, the loss from there on is above the loss of the same tokens
    in their own short rows. Rows are shuffled, so that every length mixes the sources.

    Args:
        alone: the `token_losses` of the rows.
        length: number of tokens in the sequence; fewer if all rows together have fewer.
        chunk: number of tokens read at once.

    Returns:
        Buckets, each twice as long as the one before; empty ones are left out.
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
    """Shuffled rows up to `length` tokens: input_ids and labels [T], and the losses in their own rows."""
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
