"""Estimates the training time left from the speed of the first steps, and prints the estimate once."""

import time
from collections.abc import Callable, Sequence

from glm2core.console import time_left

_LEAST_STEPS = 2  # the first step does not count; it is slower because it compiles kernels and allocates memory


class Forecast:
    """Prints `about 6 min on this machine` once, after enough measured steps.

    Args:
        costs: returns the cost of every step of the training, in any unit, so that longer rows later in the
            training count fully.
        tell: called with the estimate as text.
        shortened_by: what the user can change if the training takes long.
        least_seconds: how long the measured steps must have taken before the estimate is made.
        warm_up_seconds: fast steps within this time do not count either; they are slower because they compile kernels
            for new shapes.
    """

    def __init__(
        self,
        costs: Callable[[], Sequence[float]],
        *,
        tell: Callable[[str], None],
        shortened_by: str,
        least_seconds: float = 10.0,
        warm_up_seconds: float = 10.0,
    ) -> None:
        self._costs, self._tell, self._shortened_by = costs, tell, shortened_by
        self._least_seconds, self._warm_up_seconds = least_seconds, warm_up_seconds
        self._first: int | None = None
        self._begin = self._start = 0.0
        self._warm = self._told = False

    def add_step(self, step: int, *, besides: float) -> None:
        """Record that `step` (from 1) is done; time is measured from the first call.

        Args:
            besides: seconds that everything except the steps, such as validation, will take from now to the end.
        """
        now = time.perf_counter()
        if self._first is None:
            self._first, self._begin, self._start = step, now, now
        elif not self._warm and now - self._begin >= self._warm_up_seconds:
            self._warm = True
            if now - self._begin < 2 * self._warm_up_seconds:  # else each step takes so long that warming up is nothing
                self._first, self._start = step, now
        seconds, measured = now - self._start, step - self._first
        if self._told or not self._warm or measured < _LEAST_STEPS or seconds < self._least_seconds:
            return
        self._told = True
        costs = self._costs()
        left = sum(costs[step:]) * seconds / sum(costs[self._first : step])
        self._tell(time_left(left + besides, shortened_by=self._shortened_by))
