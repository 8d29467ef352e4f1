"""Groups rows of similar length into batches within a token budget, and pads the batches.

In shapes, `B` is the number of rows, and `T` the number of tokens in the longest row.
"""

from collections.abc import Sequence

import numpy as np

from glm2core.labels import IGNORED

_DRAWS_OF_WEIGHTS = 1  # separates these random numbers from those that shuffle an epoch's rows
_POOL_BATCHES = 50  # rows are sorted by length only within pools of about this many batches, to stay shuffled


def length_sorted_batches(
    lengths: Sequence[int] | np.ndarray, budget: int, *, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """Group rows so that each padded batch stays within `budget` tokens.

    A padded batch has as many tokens as its number of rows times the length of its longest row. A row longer than the
    budget is a batch of its own. Every row is in exactly one batch. The same arguments give the same batches.

    Args:
        lengths: number of tokens in each row.
        shuffle: True = shuffle the rows in each epoch, sort them by length within pools, and shuffle the batches.
            False = sort all rows, longest first, which needs the least padding.
    """
    lengths = np.asarray(lengths, np.int64)
    if not shuffle:
        return _packed(np.argsort(-lengths, kind="stable"), lengths, budget)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches = []
    for pool in _pools(order, lengths, budget):
        batches += _packed(pool[np.argsort(-lengths[pool], kind="stable")], lengths, budget)
    return [batches[i] for i in random.permutation(len(batches))]


def rows_of_epoch(weights: np.ndarray, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an epoch, and the copy number of each row (0 = its first copy).

    A row of weight 2.5 is taken twice in every epoch, and once more in half of the epochs. If all weights are 1, every
    row is taken once.

    Args:
        weights: the weight of each row, above 0.
    """
    times = np.floor(weights).astype(np.int64)
    rest = weights - times
    if rest.any():
        times += np.random.default_rng([seed, epoch, _DRAWS_OF_WEIGHTS]).random(len(weights)) < rest
    rows = np.repeat(np.arange(len(weights)), times)
    starts = np.cumsum(times) - times
    return rows, np.arange(len(rows)) - starts[rows]


def pad_batch(rows: Sequence[tuple[np.ndarray, ...]], pad_id: int) -> dict[str, np.ndarray]:
    """Pad rows on the right to the length of the longest row.

    Args:
        rows: for each row, a tuple (input_ids [T], labels [T], ...). Further arrays in the tuple are ignored.

    Returns:
        input_ids [B, T], labels [B, T] (IGNORED over padding), attention_mask [B, T]; all int64.
    """
    lengths = np.array([len(row[0]) for row in rows])
    shape = (len(rows), int(lengths.max()))
    input_ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    for i, (ids, row_labels, *_) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        labels[i, : len(ids)] = row_labels
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def _pools(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    tokens = np.cumsum(lengths[order])
    pool = tokens // (budget * _POOL_BATCHES)
    return np.split(order, np.flatnonzero(np.diff(pool)) + 1)


def _packed(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Fill batches in descending order of length, so that the first row of a batch is its longest."""
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if batch and longest * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        if not batch:
            longest = length
        batch.append(row)
    return [*batches, batch] if batch else batches
