"""Position stretching puts gaps into the position ids, so that short rows train the whole range of scaled positions.

PoSE (Zhu et al. 2023, https://arxiv.org/abs/2309.10400) skips positions between chunks of a short
row. Here gaps open only where a round or a line of text starts, so neighbouring tokens of
a sentence stay neighbours. CREAM (Wu et al. 2024, https://arxiv.org/abs/2406.07138) puts the head of a row at the
start of the range, the row's tail at the end of the range, and the row's middle between them.
"""

from collections.abc import Sequence

import numpy as np

_BOUNDARY_COUNTS = (1, 2, 4, 8)
_SHORT_ENDS = 4  # CREAM's short head and tail have this many tokens times the factor by which a row is stretched
_DEVIATION = 1.5 / 16  # CREAM's deviation per unit of the factor; its authors use 1.5 at their smallest factor, 16


def stretched_positions(
    length: int, segments: Sequence[int] | np.ndarray, position_range: int, rng: np.random.Generator
) -> np.ndarray:
    """Position ids [T] of a row of `length` tokens, spread over up to `position_range` positions.

    The total gap is the larger of two uniform draws. The larger draw favours long ranges, because rare distances are
    learned last. The gap is divided at random among the starts of 1, 2, 4, 8 or all segments. A row keeps plain
    positions if no segment starts inside it, or if it already fills the range. Rotary positions are relative, so
    shifting a whole row would teach nothing.

    Args:
        segments: token indices at which a round or a line starts; gaps open only there.
        position_range: number of positions the model should learn (rope.factor x rope.unit).
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


def cream_positions(
    length: int, segments: Sequence[int] | np.ndarray, position_range: int, rng: np.random.Generator
) -> np.ndarray:
    """Like `stretched_positions`, but with CREAM's two gaps.

    Each gap opens at the segment start that is nearest to the place where CREAM would open it.

    Half of the rows are divided into thirds; the other rows have a short head and a short tail. The factor by which the
    middle may be stretched is drawn from a Gaussian around half the range, truncated to the range. The end of the
    middle is then drawn uniformly within the reach that this factor gives.
    """
    positions = np.arange(length, dtype=np.int64)
    starts = np.unique([s for s in segments if 0 < s < length]).astype(np.int64)
    room = position_range - length
    if room <= 0 or len(starts) < 2:
        return stretched_positions(length, segments, position_range, rng)
    factor = position_range / length
    end = length / 3 if rng.random() < 0.5 else min(_SHORT_ENDS * factor, length / 3)
    first = min(int(np.abs(starts - end).argmin()), len(starts) - 2)
    last = max(first + 1, int(np.abs(starts - (length - end)).argmin()))
    head, middle = int(starts[first]), int(starts[last] - starts[first])
    reach = _truncated_normal(rng, (1 + factor) / 2, _DEVIATION * factor, 1.0, factor)
    lowest, highest = head + (middle - 1) * reach, reach * length - (length - head - middle) - 1
    middle_ends = rng.uniform(lowest, max(lowest, highest))
    gap = int(np.clip(middle_ends - (middle - 1) - head, 0, room))
    positions[head:] += gap
    positions[head + middle :] += room - gap
    return positions


def _truncated_normal(rng: np.random.Generator, mean: float, deviation: float, low: float, high: float) -> float:
    while not low <= (drawn := rng.normal(mean, deviation)) <= high:
        pass
    return float(drawn)


def _count(starts: int, rng: np.random.Generator) -> int:
    choices = [n for n in _BOUNDARY_COUNTS if n < starts] + [starts]
    return int(rng.choice(choices))
