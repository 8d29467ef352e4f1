"""Schedules: functions of the step, equal to transformers' to the last bit."""

import pytest
import torch
from transformers import get_scheduler

from glm2core.training.schedule import schedule_of
from tests.training.conftest import train_params

THEIRS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
PEAK = 3e-3


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(
    ("steps", "warmup", "decay"), [(1, 0.0, 0.5), (7, 0.5, 0.5), (40, 0.0, 1.0), (50, 0.03, 0.6), (333, 0.1, 0.0)]
)
def test_rates_are_those_of_transformers(name: str, steps: int, warmup: float, decay: float) -> None:
    params = train_params(schedule=name, max_steps=steps, warmup_fraction=warmup, decay_fraction=decay)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    more = {"num_decay_steps": round(decay * steps), "decay_type": "linear"} if name == "wsd" else None
    theirs = get_scheduler(
        THEIRS[name],
        optimizer,
        num_warmup_steps=round(warmup * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=more,
    )
    share = schedule_of(params)
    for step in range(steps):
        assert PEAK * share(step) == theirs.get_last_lr()[0], step
        optimizer.step()
        theirs.step()
