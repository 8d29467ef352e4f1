"""Batches of one pass over the whole training."""

import numpy as np
import pytest
import torch

from glm2core.labels import IGNORED
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.batches import TokenBudgetBatches, training_batches, validation_batches


def test_a_batch_is_padded_on_the_right_and_carries_no_mask(rows: TokenizedDataset) -> None:
    batch = next(iter(training_batches(rows, batch_tokens=192, total=1, seed=0)))
    assert set(batch) == {"input_ids", "labels", "rows", "lengths"}
    assert batch["input_ids"].shape[1] % 16 == 0
    for ids, labels, row, length in zip(*(batch[k] for k in ("input_ids", "labels", "rows", "lengths")), strict=True):
        expected_ids, expected_labels, _ = rows.row(int(row))
        assert ids[:length].tolist() == expected_ids.tolist()
        assert labels[:length].tolist() == expected_labels.tolist()
        assert (labels[length:] == IGNORED).all()


def test_each_epoch_has_every_row_once_in_another_order(rows: TokenizedDataset) -> None:
    batches = list(TokenBudgetBatches(rows.lengths, batch_tokens=192, total=200, seed=0))
    epochs = {}
    for batch in batches:
        for epoch, row in batch:
            epochs.setdefault(epoch, []).append(row)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(rows)))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world", [1, 2])
def test_a_curriculum_holds_longer_rows_back(rows: TokenizedDataset, world: int) -> None:
    shorter = int(np.median(rows.lengths))
    batches = list(
        TokenBudgetBatches(
            rows.lengths, batch_tokens=192, total=60, seed=0, curriculum=[(0.5, shorter)], rank=world - 1, world=world
        )
    )
    longest = [max(int(rows.lengths[row]) for _, row in batch) for batch in batches]
    assert len(batches) == 60
    assert max(longest[:30]) <= shorter < max(longest[30:])
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)


def test_weights_say_how_often_a_row_comes(rows: TokenizedDataset) -> None:
    weights = np.tile([1.0, 2.5, 0.2], len(rows) // 3)

    def epochs(**more: object) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        sampler = TokenBudgetBatches(rows.lengths, batch_tokens=192, total=600, seed=0, weights=weights, **more)  # type: ignore[arg-type]
        keys = [key for batch in sampler for key in batch]
        assert len(set(keys)) == len(keys)  # a copy has gaps of its own
        for epoch, row in keys:
            found.setdefault(epoch % (1 << 32), []).append(row)
        return found

    found = epochs()
    assert found == epochs()
    whole = list(found.values())[:-1]
    assert len(whole) > 10
    for taken in whole:
        counts = np.bincount(taken, minlength=len(rows))
        assert set(counts[0::3]) == {1} and set(counts[1::3]) <= {2, 3} and set(counts[2::3]) <= {0, 1}
    share = np.mean([np.bincount(taken, minlength=len(rows)) for taken in whole], axis=0).reshape(-1, 3).mean(0)
    assert share == pytest.approx([1, 2.5, 0.2], abs=0.05)


def test_weights_of_one_change_nothing(rows: TokenizedDataset) -> None:
    plain, weighted = (
        list(TokenBudgetBatches(rows.lengths, batch_tokens=192, total=40, seed=0, weights=weights))
        for weights in (None, np.ones(len(rows)))
    )
    assert plain == weighted


def test_processes_share_the_batches_of_one(rows: TokenizedDataset) -> None:
    alone = list(TokenBudgetBatches(rows.lengths, batch_tokens=192, total=20, seed=0))
    shares = [
        list(TokenBudgetBatches(rows.lengths, batch_tokens=192, total=10, seed=0, rank=rank, world=2))
        for rank in range(2)
    ]
    assert alone[::2] == shares[0]
    assert alone[1::2] == shares[1]


def test_stretched_positions_differ_by_epoch_and_keep_to_segments(rows: TokenizedDataset) -> None:
    seen: dict[int, list[list[int]]] = {}
    for batch in training_batches(rows, batch_tokens=192, total=60, seed=0, position_range=4096):
        assert batch["position_ids"].shape == batch["input_ids"].shape
        for row, length, positions in zip(batch["rows"], batch["lengths"], batch["position_ids"], strict=True):
            own = positions[:length]
            assert set((torch.diff(own) > 1).nonzero().flatten().add(1).tolist()) <= set(rows.row(int(row))[2].tolist())
            seen.setdefault(int(row), []).append(own.tolist())
    assert all(len(places) >= 2 and places[0] != places[1] for places in list(seen.values())[:10])


def test_validation_has_every_row_once(held_out: TokenizedDataset) -> None:
    found = np.concatenate([batch["rows"] for batch in validation_batches(held_out, batch_tokens=64)])
    assert sorted(found) == list(range(len(held_out)))


@pytest.mark.parametrize("world", [1, 2])
def test_a_late_start_leaves_out_what_was_taken(rows: TokenizedDataset, world: int) -> None:
    def batches(rank: int, start: int) -> list[list[tuple[int, int]]]:
        sampler = TokenBudgetBatches(
            rows.lengths,
            batch_tokens=192,
            total=30,
            start=start,
            seed=0,
            curriculum=[(0.4, 24)],
            rank=rank,
            world=world,
        )
        assert len(sampler) == 30 - start
        return list(sampler)

    for rank in range(world):
        whole = batches(rank, 0)
        assert [batches(rank, start) for start in (1, 17, 30)] == [whole[1:], whole[17:], []]
