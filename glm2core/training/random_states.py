"""The random states of a process, as plain values and tensors that load without unpickling."""

import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def random_state() -> State:
    """The states of torch (CPU, and this process's GPU if there is one), Python and numpy."""
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)  # as legacy=False promises
    key = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": {**state, "state": {**state["state"], "key": key}},
    }


def set_random_state(state: State) -> None:
    """Restore every generator to a state from `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
