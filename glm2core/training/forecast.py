"""How long the rest of a training will take, told once, by the speed of its first steps."""

import time
from collections.abc import Callable, Sequence

from glm2core.console import time_left

_LEAST_STEPS = 2  # besides the first, which is slower: kernels are compiled, memory is claimed


class Forecast:
    """Tells `about 6 min on this machine` once, when enough steps were measured.

    Args:
        costs: gives what each step costs, from the first of the training, in any unit: longer rows that come
            later count as what they are.
        tell: gets the sentence.
        shortened_by: what to change where it takes long.
        least_seconds: of measured steps; a clock needs something to measure.
    """

    def __init__(
        self,
        costs: Callable[[], Sequence[float]],
        *,
        tell: Callable[[str], None],
        shortened_by: str,
        least_seconds: float = 10.0,
    ) -> None:
        self._costs, self._tell, self._shortened_by, self._least_seconds = costs, tell, shortened_by, least_seconds
        self._first: int | None = None
        self._start, self._told = 0.0, False

    def add_step(self, step: int, *, besides: float) -> None:
        """Note that `step` (from 1) is done; time is taken from the first call on.

        Args:
            besides: seconds that go into other things than steps, until the end.
        """
        now = time.perf_counter()
        if self._first is None:
            self._first, self._start = step, now
        seconds, measured = now - self._start, step - self._first
        if self._told or measured < _LEAST_STEPS or seconds < self._least_seconds:
            return
        self._told = True
        costs = self._costs()
        left = sum(costs[step:]) * seconds / sum(costs[self._first : step])
        self._tell(time_left(left + besides, shortened_by=self._shortened_by))
