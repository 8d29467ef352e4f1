"""FSDP2's plan on two gloo processes, and the settings that it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glm2core.errors import UserError
from glm2core.model.layers import GLMBlock
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.training.distributed import require_shardable, sharded_modules
from tests.training.conftest import ROOT, tiny_model, train_params


def test_sharded_parameters_are_dtensors_and_the_loss_is_that_of_the_unsharded_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.sharded", str(tmp_path / "state.pt")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"process {rank} of 2: equal" in done.stdout for rank in (0, 1))


def test_the_plan_is_what_accelerate_takes_from_the_network() -> None:
    network = tiny_model()
    *blocks, root = sharded_modules(network)
    assert root is network
    assert {type(block).__name__ for block in blocks} == set(ChatGLM2ForCausalLM._no_split_modules)
    assert blocks == [module for module in network.modules() if isinstance(module, GLMBlock)]


def test_fsdp1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    require_shardable(train_params(), torch.float32)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="set fsdp_version to 2"):
        require_shardable(train_params(), torch.float32)


def test_what_cannot_be_sharded_is_refused() -> None:
    require_shardable(train_params(), torch.float32)
    with pytest.raises(UserError, match=r"doesn't work with train\.method lora, train\.dtype bfloat16\. "):
        require_shardable(train_params(method="lora"), torch.bfloat16)
    with pytest.raises(UserError, match=r"train\.optimizer muon"):
        require_shardable(train_params(optimizer="muon"), torch.float32)
