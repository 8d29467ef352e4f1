"""The time left: printed once, from measured steps, with later steps weighted by their cost."""

import re
import time

import pytest

from glm2core.training.forecast import Forecast

STEP = 0.05


def told(
    costs: list[float], *, done: int = 0, besides: float = 0.0, steps: int = 6, slow: int = 1, warm_up: float = 0.0
) -> list[str]:
    sentences: list[str] = []
    forecast = Forecast(
        lambda: costs,
        tell=sentences.append,
        shortened_by="fewer steps",
        least_seconds=3 * STEP,
        warm_up_seconds=warm_up,
    )
    for step in range(done + 1, done + steps + 1):
        time.sleep(STEP * 4 if step <= done + slow else STEP)  # the slow steps don't count
        forecast.add_step(step, besides=besides)
    return sentences


def seconds(sentence: str) -> int:
    found = re.match(r"about (\d+) s on this machine", sentence)
    assert found, sentence
    return int(found[1])


def test_it_is_told_once_from_the_steps_after_the_first() -> None:
    (sentence,) = told([1.0] * 400)  # 396 steps of 0.05 s are left after the fourth
    assert 19 <= seconds(sentence) <= 30


def test_longer_rows_to_come_count_as_what_they_cost() -> None:
    (sentence,) = told([1.0] * 100 + [4.0] * 75)
    assert 19 <= seconds(sentence) <= 30


def test_a_resumed_run_counts_what_is_left() -> None:
    (sentence,) = told([9.0] * 300 + [1.0] * 400, done=300)
    assert 19 <= seconds(sentence) <= 30


def test_steps_that_warm_up_do_not_count() -> None:
    (sentence,) = told([1.0] * 400, steps=13, slow=3, warm_up=8 * STEP)
    assert 19 <= seconds(sentence) <= 30


def test_validations_count_besides() -> None:
    (sentence,) = told([1.0] * 6, besides=60)
    assert 60 <= seconds(sentence) <= 61


def test_a_long_run_is_told_with_what_shortens_it() -> None:
    (sentence,) = told([1.0] * 150_000)
    assert "fewer steps" in sentence and " h " in sentence


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_steps_tell_nothing(steps: int) -> None:
    assert told([1.0] * 400, steps=steps) == []
