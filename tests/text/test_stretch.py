"""PoSE positions: gaps only where rounds and lines start, within the range, the same for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.text.stretch import cream_positions, stretched_positions


@pytest.mark.parametrize("draw", [stretched_positions, cream_positions])
@given(st.data(), st.integers(1, 300), st.integers(1, 4096), st.integers(0, 2**32))
def test_gaps_open_only_at_segment_starts(
    draw: Callable[..., np.ndarray], data: st.DataObject, length: int, position_range: int, seed: int
) -> None:
    segments = data.draw(st.lists(st.integers(0, length + 5), max_size=30))
    positions = draw(length, segments, position_range, np.random.default_rng(seed))
    again = draw(length, segments, position_range, np.random.default_rng(seed))
    assert (positions == again).all()
    assert positions[0] == 0
    steps = np.diff(positions)
    assert (steps >= 1).all()
    assert set(np.flatnonzero(steps > 1) + 1) <= set(segments)
    assert positions[-1] < max(position_range, length)


def test_the_range_is_covered_and_long_gaps_are_favoured() -> None:
    random = np.random.default_rng(0)
    ends = [stretched_positions(100, [0, 30, 60], 32768, random)[-1] for _ in range(500)]
    assert max(ends) > 31000
    assert 0.6 < np.mean(ends) / 32768 < 0.73  # the mean of the larger of two uniform draws is 2/3


def test_cream_keeps_head_and_tail_at_the_ends_and_the_middle_mostly_in_the_middle() -> None:
    random = np.random.default_rng(0)
    segments = list(range(0, 1500, 20))
    heads, middles = set(), []
    for _ in range(500):
        positions = cream_positions(1500, segments, 32768, random)
        gaps = np.flatnonzero(np.diff(positions) > 1) + 1
        assert positions[0] == 0 and positions[-1] == 32767
        assert len(gaps) in (1, 2)
        if len(gaps) == 2:
            heads.add(int(gaps[0]))
            middles.append(positions[gaps[0]] / 32768)
    assert {500, 80} & heads and len(heads) == 2  # a third, or four times the factor of 22, at the next line start
    assert 0.25 < np.mean(middles) < 0.5 and np.std(middles) < 0.25  # a uniform draw has 0.29
