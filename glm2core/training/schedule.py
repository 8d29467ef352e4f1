"""Learning-rate schedules: functions that map a step to a share of the peak rate.

`step` counts from 0, so the first step of a warm-up has a rate of 0.
"""

import math
from collections.abc import Callable

from glm2core.params import TrainParams

Schedule = Callable[[int], float]


def schedule_of(params: TrainParams) -> Schedule:
    """The schedule set in params."""
    steps, warmup = params.steps, round(params.warmup_fraction * params.steps)
    decay = round(params.decay_fraction * params.steps)
    schedules: dict[str, Schedule] = {
        "linear": lambda step: linear(step, warmup=warmup, steps=steps),
        "cosine": lambda step: cosine(step, warmup=warmup, steps=steps),
        "constant": lambda step: constant(step, warmup=warmup),
        "wsd": lambda step: wsd(step, warmup=warmup, decay=decay, steps=steps),
    }
    return schedules[params.schedule]


def constant(step: int, *, warmup: int) -> float:
    """Warm-up over `warmup` steps, then the full rate."""
    return step / warmup if step < warmup else 1.0


def linear(step: int, *, warmup: int, steps: int) -> float:
    """Warm-up, then a linear decay that reaches 0 after the last of `steps` steps."""
    return step / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))


def cosine(step: int, *, warmup: int, steps: int) -> float:
    """Warm-up, then a half-cosine decay that reaches 0 after the last of `steps` steps."""
    if step < warmup:
        return step / warmup
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / max(1, steps - warmup)))))


def wsd(step: int, *, warmup: int, decay: int, steps: int) -> float:
    """Warm-up, then the full rate, then a linear decay to 0 over the last `decay` steps."""
    if step < warmup:
        return step / warmup
    decayed = step - (steps - decay)
    return 1.0 if decayed < 0 else max(0.0, 1.0 - decayed / max(1, decay))
