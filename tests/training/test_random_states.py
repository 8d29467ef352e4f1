"""Every generator resumes from a file as if nothing had happened."""

import random
from pathlib import Path

import numpy as np
import torch

from glm2core.training.random_states import random_state, set_random_state


def draws() -> list[float]:
    found = [torch.rand(()).item(), random.random(), random.gauss(), float(np.random.rand()), float(np.random.randn())]
    return [*found, *(torch.rand((), device="cuda").item() for _ in range(torch.cuda.device_count()))]


def test_all_generators_go_on_from_a_file(tmp_path: Path) -> None:
    draws()  # one half of a pair of normal deviates is kept for the next draw
    torch.save(random_state(), tmp_path / "random.pt")
    expected = draws()
    draws()
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert draws() == expected
