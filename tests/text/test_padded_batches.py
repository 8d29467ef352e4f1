"""Token-budget batches: every row once, within the budget, the same for the same seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glm2core.labels import IGNORED
from glm2core.text.batching import length_sorted_batches, pad_batch


@given(
    lengths=st.lists(st.integers(1, 300), max_size=200),
    budget=st.integers(1, 600),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_row_is_in_one_batch_within_the_budget(lengths, budget, seed, shuffle):
    batches = length_sorted_batches(lengths, budget, seed=seed, epoch=1, shuffle=shuffle)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
    assert batches == length_sorted_batches(np.array(lengths), budget, seed=seed, epoch=1, shuffle=shuffle)


def test_shuffling_differs_by_seed_and_epoch_and_wastes_little():
    lengths = np.random.default_rng(0).integers(20, 500, 5000)
    first = length_sorted_batches(lengths, 2048, seed=0, epoch=0, shuffle=True)
    others = [length_sorted_batches(lengths, 2048, seed=s, epoch=e, shuffle=True) for s, e in ((0, 1), (1, 0))]
    assert all(batches != first for batches in others)
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert lengths.sum() / padded > 0.95
    # Batches stand in no order of length
    longest = [int(lengths[batch].max()) for batch in first]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.2


def test_without_shuffling_the_longest_come_first():
    batches = length_sorted_batches([5, 9, 9, 1], 18, seed=0, epoch=0, shuffle=False)
    assert batches == [[1, 2], [0, 3]]


def test_padding_is_on_the_right_and_ignored():
    rows = [
        (np.array([7, 8, 9]), np.array([IGNORED, 8, 9]), np.array([0])),
        (np.array([5]), np.array([5]), np.array([0])),
    ]
    batch = pad_batch(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 8, 9], [5, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert all(array.dtype == np.int64 for array in batch.values())
