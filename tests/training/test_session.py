"""Settings for small networks are refused on large ones, with what to set instead."""

import pytest

from glm2core.errors import UserError
from glm2core.training.session import _require_settings_for_size
from tests.training.conftest import train_params

SMALL = {"optimizer": "muon", "bias_rate": 20.0, "learning_rate": 3e-3}
USUAL = {"optimizer": "adamw", "bias_rate": 1.0, "learning_rate": None}


def test_a_large_network_wants_the_usual_settings() -> None:
    with pytest.raises(
        UserError, match=r"optimizer muon, bias_rate 20\.0, learning_rate 0\.003.* 6\.2 billion"
    ) as told:
        _require_settings_for_size(6_243_584_000, train_params(**SMALL))
    for change in ("-S train.optimizer=adamw", "-S train.bias_rate=1", "-S train.learning_rate=null"):
        assert change in str(told.value)
    _require_settings_for_size(6_243_584_000, train_params(**USUAL))
    _require_settings_for_size(1_313_920, train_params(**SMALL))


def test_a_rate_is_high_by_its_methods_default() -> None:
    _require_settings_for_size(6_243_584_000, train_params(**(USUAL | {"method": "ptuning", "learning_rate": 2e-2})))
    with pytest.raises(UserError, match="learning_rate=null"):
        _require_settings_for_size(6_243_584_000, train_params(**(USUAL | {"method": "qlora", "learning_rate": 3e-3})))
