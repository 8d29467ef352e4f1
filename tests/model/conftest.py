"""Fixtures of the model's tests: a small network, its inputs, and the golden values if present."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glm2core.model import ChatGLM2ForCausalLM
from tests.model.networks import small_network

SHARED = Path(os.environ.get("GLM2CORE_SHARED") or Path(__file__).resolve().parents[3] / "shared")


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """What the released code computes (made elsewhere; its README says how)."""
    file = SHARED / "golden" / "official_tiny.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return load_file(file)


@pytest.fixture
def network() -> ChatGLM2ForCausalLM:
    return small_network()


@pytest.fixture
def input_ids() -> torch.Tensor:
    """[2, 24], no pad or stop id among them."""
    return torch.randint(3, 320, (2, 24), generator=torch.Generator().manual_seed(5))
