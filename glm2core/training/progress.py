"""Records the curves of a training run, and the sums from which the next point of each curve is computed.

Checkpoints contain the curves and the sums, so that a resumed run has the same curves as an uninterrupted run.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from glm2core.console import Report

CurvePoint = dict[str, float]

BY_SOURCE = "validation_loss."
"""In a point, the key of a source's validation loss is this prefix followed by the source's name."""


class Progress:
    """Sums the losses, tokens and seconds of the steps, and adds a point after each `every` steps.

    Args:
        every: number of steps between points.
        operations_per_second: the machine's rate of matrix multiplication, which is the reference for `mfu`. If
            steps are faster, because other work slowed the measurement, the rate of the fastest steps is used instead.
        report: called with each point's metrics and its step.
        sources: names of the training rows' sources.
    """

    def __init__(
        self, *, every: int, operations_per_second: float, report: Report, sources: Sequence[str] = ()
    ) -> None:
        self._every, self._rate, self._report = every, operations_per_second, report
        self._mix = {source: [0.0, 0.0] for source in sources}
        self.points: list[CurvePoint] = []
        self._sums = _zeros()
        self._totals = _zeros()
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """Exclude the time since the last step, which went into validation, saving or loading."""
        self._clock = time.perf_counter()

    def add_batch(self, *, padded: float, operations: float, mix: Sequence[Sequence[float]]) -> float:
        """Count what all processes read for one step; returns the step's number of supervised tokens.

        Args:
            padded: number of tokens, including padding.
            mix: for each source, the numbers of tokens and of supervised tokens, without padding.
        """
        tokens, supervised = (sum(column) for column in zip(*mix, strict=True))
        for sums in (self._sums, self._totals):
            sums["tokens"] += tokens
            sums["supervised"] += supervised
            sums["padded"] += padded
            sums["operations"] += operations
        for known, more in zip(self._mix.values(), mix, strict=True):
            known[0] += more[0]
            known[1] += more[1]
        return supervised

    def add_step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, peak_memory: float) -> None:
        """End an optimizer step. After each `every` steps, a point with the mean loss of these steps is added."""
        now = time.perf_counter()
        for sums in (self._sums, self._totals):
            sums["seconds"] += now - self._clock
            sums["steps"] += 1
        self._sums["loss"] += loss
        self._clock = now
        if step % self._every == 0:
            self._close(step, learning_rate=learning_rate, grad_norm=grad_norm, peak_memory=peak_memory)

    def add_validation(
        self, step: int, loss: float, by_source: Mapping[str, float] | None = None, seconds: float = 0.0
    ) -> None:
        """Record the validation loss over all rows and by source. Validating a step again replaces the step's point.

        Args:
            seconds: how long the validation took.
        """
        self.points = [p for p in self.points if not (p["step"] == step and "validation_loss" in p)]
        sources = {f"{BY_SOURCE}{source}": value for source, value in (by_source or {}).items()}
        self._keep(step, {"validation_loss": loss, **sources})
        self._totals["validation_seconds"] += seconds
        self.restart_clock()

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every point that contains `name`."""
        return [(int(p["step"]), p[name]) for p in self.points if name in p]

    @property
    def latest(self) -> CurvePoint:
        """The newest point with a training loss; empty if there is none yet."""
        return next((p for p in reversed(self.points) if "loss" in p), {})

    @property
    def totals(self) -> dict[str, float]:
        """Totals since step 0: tokens, supervised tokens, operations, steps, and seconds of steps and validations."""
        return dict(self._totals)

    @property
    def mix(self) -> dict[str, dict[str, float]]:
        """Numbers of tokens and of supervised tokens from each source since step 0, without padding."""
        return {
            source: {"tokens": tokens, "supervised_tokens": supervised}
            for source, (tokens, supervised) in self._mix.items()
        }

    @property
    def padding(self) -> float:
        """The share of padding among the tokens of all batches."""
        return 1 - self._totals["tokens"] / max(self._totals["padded"], 1)

    @property
    def mfu(self) -> float:
        """The share of the machine's rate of matrix multiplication that all steps together reached."""
        return min(1.0, self._totals["operations"] / max(self._totals["seconds"], 1e-9) / self._rate)

    def best_validation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss; of equal losses, the earliest."""
        return min(self.curve("validation_loss"), key=lambda point: point[1], default=None)

    def validations_since_best(self) -> int:
        """Number of validations after the best one."""
        losses = [loss for _, loss in self.curve("validation_loss")]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "sums": self._sums, "totals": self._totals, "mix": self._mix}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self._sums, self._totals = state["points"], state["sums"], state["totals"]
        self._mix = state["mix"]

    def _close(self, step: int, *, learning_rate: float, grad_norm: float, peak_memory: float) -> None:
        sums, seconds = self._sums, max(self._sums["seconds"], 1e-9)
        self._rate = max(self._rate, sums["operations"] / seconds)
        self._keep(
            step,
            {
                "loss": sums["loss"] / sums["steps"],
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_second": sums["tokens"] / seconds,
                "mfu": sums["operations"] / seconds / self._rate,
                "peak_memory_gib": peak_memory,
            },
        )
        self._sums = _zeros()

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        self.points.append({"step": step, **metrics})
        self._report(metrics, step)


def _zeros() -> dict[str, float]:
    names = ("loss", "tokens", "supervised", "padded", "operations", "seconds", "validation_seconds", "steps")
    return dict.fromkeys(names, 0.0)
