"""PoSE positions: gaps only where rounds and lines start, within the range, the same for the same seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glm2core.text.stretch import stretched_positions


@given(st.data(), st.integers(1, 300), st.integers(1, 4096), st.integers(0, 2**32))
def test_gaps_open_only_at_segment_starts(data: st.DataObject, length: int, position_range: int, seed: int) -> None:
    segments = data.draw(st.lists(st.integers(0, length + 5), max_size=30))
    positions = stretched_positions(length, segments, position_range, np.random.default_rng(seed))
    again = stretched_positions(length, segments, position_range, np.random.default_rng(seed))
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
