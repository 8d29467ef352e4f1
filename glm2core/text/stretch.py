"""Position stretching: gaps in the position ids, so that short rows train the whole scaled range.

PoSE (Zhu et al. 2023, https://arxiv.org/abs/2309.10400) skips positions between chunks of a short
row. Here a gap only ever opens where a round or a line of text starts, so neighbouring tokens of
a sentence stay neighbours.
"""

from collections.abc import Sequence

import numpy as np

_BOUNDARY_COUNTS = (1, 2, 4, 8)


def stretched_positions(
    length: int, segments: Sequence[int] | np.ndarray, position_range: int, rng: np.random.Generator
) -> np.ndarray:
    """Position ids [T] of a row of `length` tokens, spread over up to `position_range` positions.

    Args:
        segments: token indices at which a round or a line starts; gaps open only there.
        position_range: positions the model is to learn (rope.factor x rope.unit).

    The total gap favours long ranges (the larger of two uniform draws), because distances that
    only a few rows reach are learned last. It is spread at random over 1, 2, 4, 8 or all starts.
    A row without an inner start, or as long as the range, keeps plain positions: rotary positions
    are relative, so shifting the whole row would teach nothing.
    """
    positions = np.arange(length, dtype=np.int64)
    starts = np.unique([s for s in segments if 0 < s < length]).astype(np.int64)
    room = position_range - length
    if room <= 0 or len(starts) == 0:
        return positions
    total = int(room * rng.random(2).max())
    chosen = rng.choice(starts, size=_count(len(starts), rng), replace=False)
    shares = rng.multinomial(total, rng.dirichlet(np.ones(len(chosen))))
    gaps = np.zeros(length, dtype=np.int64)
    gaps[chosen] = shares
    return positions + np.cumsum(gaps)


def _count(starts: int, rng: np.random.Generator) -> int:
    choices = [n for n in _BOUNDARY_COUNTS if n < starts] + [starts]
    return int(rng.choice(choices))
