"""The loss scale of float16 training (Micikevicius et al. 2018, arXiv:1710.03740).

float16 has no numbers between 0 and 6e-8, where most gradients are. The loss is multiplied by a scale, so all gradients
are, and what is stepped is divided by it again, in fp32. A scale that is too large makes the gradient infinite: that
step is done again with half of it, so no row is lost.
"""

from dataclasses import dataclass
from typing import Any

from glm2core.errors import UserError

_LARGEST = 2.0**24
_PATIENCE = 1000  # steps that went well before a larger scale is tried


@dataclass
class LossScale:
    """The scale of the coming step; a power of 2, so that multiplying by it rounds nothing.

    Args:
        value: at the start.
        good: steps in a row that went well with it.
    """

    value: float = 2.0**16
    good: int = 0

    def keep(self) -> None:
        """A step went well."""
        self.good += 1
        if self.good >= _PATIENCE:
            self.value, self.good = min(2 * self.value, _LARGEST), 0

    def lower(self, step: int) -> None:
        """The gradient of `step` isn't finite: half the scale.

        Raises:
            UserError: there is none left.
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
