"""Makes batches of rows for training and validation.

In shapes, `B` is the number of rows, and `T` the number of tokens in the longest row.

Padding is on the right, so the model needs no mask: a causal kernel never lets a token see later tokens, and outputs at
padding are never used. Each row of a batch is one document, so documents never see each other.
"""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from glm2core.labels import IGNORED
from glm2core.text.batching import length_sorted_batches, pad_batch, rows_of_epoch
from glm2core.text.dataset import TokenizedDataset, TokenRow
from glm2core.text.stretch import cream_positions, stretched_positions

RowKey = tuple[int, int]  # epoch, row
_COPY = 1 << 32  # added to the epoch of a row's second copy, so that the copy gets its own position gaps
_UNSUPERVISED = -1  # used in place of an epoch to get the row without its labels
Curriculum = Sequence[tuple[float, int]]

# oneDNN compiles and keeps a bf16 kernel for every new shape. Padding rows to a multiple of 16 leaves few shapes. This
# costs 5% more padding, but it saves about 20% of the time and stops memory from growing.
_LENGTH_MULTIPLE = 16


class TokenBudgetBatches(Sampler[list[RowKey]]):
    """Yields `total` batches within a token budget, of rows with similar lengths. Every epoch is shuffled anew.

    One pass over this sampler covers the entire training run. A resumed training therefore needs only the number of
    batches already taken, not the epoch.

    Args:
        lengths: number of tokens in each row.
        weights: how often each row is used per epoch; None = once.
        batch_tokens: largest number of tokens in a padded batch; a longer row is a batch of its own.
        total: number of batches for this process.
        start: number of batches to skip, which were taken before the run was resumed.
        curriculum: pairs (share, length). Rows longer than the length are not used until this share of the training is
            done.
        rank, world: this process takes every `world`-th batch, beginning with number `rank`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_tokens: int,
        total: int,
        seed: int,
        start: int = 0,
        curriculum: Curriculum = (),
        rank: int = 0,
        world: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self._weights = np.ones(len(lengths)) if weights is None else weights
        self._lengths, self._batch_tokens, self._seed = lengths, batch_tokens, seed
        self._total, self._start, self._rank, self._world = total, start, rank, world
        self._curriculum = curriculum

    def __len__(self) -> int:
        return self._total - self._start

    def __iter__(self) -> Iterator[list[RowKey]]:
        return islice(self._all(), self._start * self._world + self._rank, None, self._world)

    def _all(self) -> Iterator[list[RowKey]]:
        """The batches of all processes, in the order of the curriculum's stages and the epochs in each stage."""
        everything = self._total * self._world
        done, epochs = 0, count()
        for share, tokens in [*self._curriculum, (1.0, int(self._lengths.max()))]:
            rows = np.flatnonzero(self._lengths <= tokens)
            until = round(share * everything)
            if done < until:
                yield from islice(self._endless(rows, epochs), until - done)
                done = until

    def _endless(self, rows: np.ndarray, epochs: Iterator[int]) -> Iterator[list[RowKey]]:
        for epoch in epochs:
            taken, copies = rows_of_epoch(self._weights[rows], seed=self._seed, epoch=epoch)
            taken = rows[taken]
            batches = length_sorted_batches(
                self._lengths[taken], self._batch_tokens, seed=self._seed, epoch=epoch, shuffle=True
            )
            for batch in batches:
                yield [(epoch + _COPY * int(copies[place]), int(taken[place])) for place in batch]


class TrainingRows(Dataset[dict[str, Any]]):
    """Returns the row for a key (epoch, row). With a position range, new position gaps are drawn in each epoch.

    Args:
        position_range: range over which the gaps may spread a row; None = plain positions.
        gaps: how the gaps are drawn, pose or cream.
    """

    def __init__(
        self, tokenized: TokenizedDataset, *, seed: int = 0, position_range: int | None = None, gaps: str = "pose"
    ) -> None:
        self._tokenized, self._seed, self._range = tokenized, seed, position_range
        self._positions = cream_positions if gaps == "cream" else stretched_positions

    def __len__(self) -> int:
        return len(self._tokenized)

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        epoch, index = key
        row = self._tokenized.row(index)
        if epoch == _UNSUPERVISED:
            row = row[0], np.full_like(row[1], IGNORED), row[2]
        if self._range is None:
            return {"index": index, "row": row, "positions": None}
        rng = np.random.default_rng([self._seed, epoch, index])
        return {"index": index, "row": row, "positions": self._positions(len(row[0]), row[2], self._range, rng)}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Make a batch.

    Returns:
        input_ids, labels (and position_ids) [B, T]; rows and lengths [B], which are not given to the model.
    """
    rows: list[TokenRow] = [item["row"] for item in items]
    padded = pad_batch(rows, pad_id=0)
    more = -padded["input_ids"].shape[1] % _LENGTH_MULTIPLE
    batch = {
        "input_ids": F.pad(torch.from_numpy(padded["input_ids"]), (0, more)),
        "labels": F.pad(torch.from_numpy(padded["labels"]), (0, more), value=IGNORED),
        "rows": torch.tensor([item["index"] for item in items]),
        "lengths": torch.tensor([len(row[0]) for row in rows]),
    }
    if items[0]["positions"] is not None:
        batch["position_ids"] = F.pad(_pad_positions([item["positions"] for item in items]), (0, more))
    return batch


def training_batches(
    tokenized: TokenizedDataset,
    *,
    batch_tokens: int,
    total: int,
    seed: int,
    start: int = 0,
    curriculum: Curriculum = (),
    position_range: int | None = None,
    gaps: str = "pose",
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader[dict[str, torch.Tensor]]:
    """The training batches of this process, with all epochs in one pass."""
    sampler = TokenBudgetBatches(
        tokenized.lengths,
        batch_tokens=batch_tokens,
        total=total,
        seed=seed,
        start=start,
        curriculum=curriculum,
        rank=rank,
        world=world,
        weights=tokenized.weights,
    )
    rows = TrainingRows(tokenized, seed=seed, position_range=position_range, gaps=gaps)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate, pin_memory=pin_memory)


def validation_batches(
    tokenized: TokenizedDataset, *, batch_tokens: int, rank: int = 0, world: int = 1
) -> DataLoader[dict[str, torch.Tensor]]:
    """The validation batches of this process, with each row once, the longest rows first, at plain positions.

    A process that has no batch left in the last round gets a batch without labels, because a forward pass with sharded
    weights needs all processes.
    """
    batches = length_sorted_batches(tokenized.lengths, batch_tokens, seed=0, epoch=0, shuffle=False)
    keys = [[(0, row) for row in batch] for batch in batches[rank::world]]
    if len(keys) < -(-len(batches) // world):
        keys.append([(_UNSUPERVISED, row) for row in batches[-1]])
    return DataLoader(TrainingRows(tokenized), batch_sampler=keys, collate_fn=collate)


def _pad_positions(positions: list[np.ndarray]) -> torch.Tensor:
    padded = np.zeros((len(positions), max(map(len, positions))), dtype=np.int64)
    for row, own in zip(padded, positions, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(padded)
