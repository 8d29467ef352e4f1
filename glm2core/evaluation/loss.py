"""Held-out loss: token-weighted over rows, and by position in one long sequence.

Shapes: `B` rows, `T` tokens, `S` columns with supervised tokens, `V` vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from glm2core.data.batching import length_sorted_batches
from glm2core.data.dataset import TokenizedDataset
from glm2core.data.pairs import IGNORED
from glm2core.data.sp import PAD
from glm2core.evaluation.padding import left_mask, left_padded

_FIRST_BUCKET = 256


@dataclass(frozen=True)
class Loss:
    """Summed cross-entropy in nats over so many supervised tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where that is past floating point."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


@torch.inference_mode()
def held_out_loss(
    model: PreTrainedModel, dataset: TokenizedDataset, batch_tokens: int, advance: Callable[[int], None] | None = None
) -> Loss:
    """Loss of all supervised tokens of all rows; every token counts the same, whatever row it stands in.

    Rows are padded on the left, so that answers end in one column and the output layer is applied to
    the last columns only.

    Args:
        advance: called with the number of rows done since the last call.
    """
    total, tokens = 0.0, 0
    for batch in length_sorted_batches(dataset.lengths, batch_tokens, seed=0, epoch=0, shuffle=False):
        rows = [dataset.row(index) for index in batch]
        inputs = [input_ids for input_ids, _, _ in rows]
        labels = left_padded([row_labels for _, row_labels, _ in rows], IGNORED, model.device)  # [B, T]
        supervised = (labels != IGNORED).any(0).nonzero()
        if len(supervised) and int(supervised[-1]) > 0:
            # The label in column t is predicted from column t - 1, and column 0 from nothing.
            columns = labels.shape[1] - max(1, int(supervised[0]))  # S
            logits = model(
                input_ids=left_padded(inputs, PAD, model.device),
                attention_mask=left_mask(inputs, model.device),
                use_cache=False,
                logits_to_keep=columns + 1,
            ).logits[:, :-1]  # [B, S, V]
            losses = _token_losses(logits.flatten(0, 1), labels[:, -columns:].flatten())
            total, tokens = total + float(losses.sum()), tokens + len(losses)
        if advance is not None:
            advance(len(batch))
    return Loss(total, tokens)


@torch.inference_mode()
def loss_by_position(
    model: PreTrainedModel, dataset: TokenizedDataset, length: int, chunk: int
) -> list[tuple[int, int, Loss]]:
    """Loss of supervised tokens by their position, in one sequence of held-out rows put end to end.

    A network whose positions stop working shows it here as a rise at the length where they do.

    Args:
        length: tokens of the sequence; fewer where the rows hold fewer.
        chunk: tokens read at once.

    Returns:
        (first position, first position behind, loss) for buckets of doubling size; empty ones are left out.
    """
    input_ids, labels = _end_to_end(dataset, length)
    cache = DynamicCache()
    losses, positions = [], []
    for start in range(0, len(input_ids) - 1, chunk):
        places = np.flatnonzero(labels[start + 1 : start + 1 + chunk] != IGNORED)  # predicted from these, in the chunk
        logits = model(
            input_ids=torch.from_numpy(input_ids[None, start : start + chunk]).to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.from_numpy(places if len(places) else np.zeros(1, np.int64)).to(model.device),
        ).logits[0]
        if len(places):
            targets = torch.from_numpy(labels[start + 1 + places]).to(model.device)
            losses.append(_token_losses(logits, targets).cpu().numpy())
            positions.append(start + 1 + places)
    if not losses:
        return []
    return _bucketed(np.concatenate(losses), np.concatenate(positions))


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each supervised token. logits [T, V], labels [T] -> float64 [supervised]."""
    chosen = labels != IGNORED
    return F.cross_entropy(logits[chosen].float(), labels[chosen], reduction="none").double()


def _end_to_end(dataset: TokenizedDataset, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after the other up to `length` tokens: input_ids and labels, int64."""
    input_ids, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    held = 0
    for index in range(len(dataset)):
        ids, row_labels, _ = dataset.row(index)
        input_ids.append(ids.astype(np.int64))
        labels.append(row_labels.astype(np.int64))
        held += len(ids)
        if held >= length:
            break
    return np.concatenate(input_ids)[:length], np.concatenate(labels)[:length]


def _bucketed(losses: np.ndarray, positions: np.ndarray) -> list[tuple[int, int, Loss]]:
    buckets = []
    for start, end in _bucket_borders(int(positions[-1])):
        inside = losses[(positions >= start) & (positions < end)]
        if len(inside):
            buckets.append((start, end, Loss(float(inside.sum()), len(inside))))
    return buckets


def _bucket_borders(last: int) -> Iterator[tuple[int, int]]:
    start, end = 0, _FIRST_BUCKET
    while start <= last:
        yield start, end
        start, end = end, 2 * end
