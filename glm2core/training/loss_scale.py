"""The loss scale of float16 training (Micikevicius et al. 2018, arXiv:1710.03740).

float16 has no numbers between 0 and 6e-8, where most gradients are. Therefore the loss, and with it every gradient, is
multiplied by a scale. The optimizer's fp32 copy of the gradients is divided by the scale again. If the scale is so
large that the gradient becomes infinite, the step is repeated with half the scale, so that no row is skipped.
"""

from dataclasses import dataclass
from typing import Any

from glm2core.errors import UserError

_LARGEST = 2.0**24
_PATIENCE = 1000  # successful steps before a larger scale is tried


@dataclass
class LossScale:
    """The scale of the next step. The scale is a power of 2, so that multiplying by it is exact.

    Args:
        value: initial scale.
        good: number of successive successful steps with this scale.
    """

    value: float = 2.0**16
    good: int = 0

    def keep(self) -> None:
        """Count a successful step."""
        self.good += 1
        if self.good >= _PATIENCE:
            self.value, self.good = min(2 * self.value, _LARGEST), 0

    def lower(self, step: int) -> None:
        """Halve the scale, because the gradient of `step` isn't finite.

        Raises:
            UserError: the scale can't be lowered further.
        """
        self.value, self.good = self.value / 2, 0
        if self.value < 1:
            raise UserError(
                f"the gradient of step {step} is not finite in float16 at any loss scale down to 1; nothing was "
                "updated. Lower train.learning_rate, or set train.dtype to float32 or bfloat16. The last checkpoint "
                "is kept."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.good = state["value"], state["good"]
