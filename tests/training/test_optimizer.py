"""Updates that bf16 would lose, Muon, and optimizers that resume from a file."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from glm2core.training.optimizer import MasterWeights, make_optimizer
from tests.training.small_networks import Block, make, network, steps

SMALL_RATE = 1e-5


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_small_updates_are_not_swallowed() -> None:
    """fp32 AdamW moves a weight of 1 by 2e-3 in 200 steps of 1e-5; plain bf16 AdamW leaves it at 1."""
    moved = {}
    for kind in ("plain", "master"):
        weight = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
        model = nn.ParameterList([weight])
        optimizer = (
            torch.optim.AdamW([weight], lr=SMALL_RATE, weight_decay=0.0)
            if kind == "plain"
            else make_optimizer(model, name="adamw", learning_rate=SMALL_RATE, weight_decay=0.0)
        )
        for _ in range(300):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[kind] = (1 - weight.detach().float()).mean().item()
    assert moved["plain"] == 0
    assert moved["master"] == pytest.approx(300 * SMALL_RATE, abs=2**-9)


def test_master_weights_follow_fp32_adamw() -> None:
    model, optimizer_of = network(), torch.optim.AdamW
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    reference = optimizer_of(
        [{"params": masters[::2], "weight_decay": 0.1}, {"params": masters[1::2], "weight_decay": 0.0}], lr=1e-3
    )
    ours = make(model, "adamw")
    assert isinstance(ours, MasterWeights)
    for step in range(5):
        torch.manual_seed(step)
        for parameter, master in zip(model.parameters(), masters, strict=True):
            parameter.grad = torch.randn_like(parameter)
            master.grad = parameter.grad.float()
        ours.step()
        reference.step()
    for parameter, master in zip(model.parameters(), masters, strict=True):
        assert torch.equal(parameter, master.detach().bfloat16())


def test_fp32_weights_need_no_copies() -> None:
    assert isinstance(make(network(torch.float32), "adamw"), torch.optim.AdamW)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    """A Muon update of a badly scaled gradient is nearly orthogonal: singular values near lr * sqrt(rows / columns)."""
    model = nn.ModuleDict({"block": Block(), "embedding": nn.Embedding(40, 16), "norm": nn.RMSNorm(16)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.logspace(0, -2, parameter.shape[-1])
    optimizer = make_optimizer(model, name="muon", learning_rate=1e-2, weight_decay=0.0, bias_rate=20)
    optimizer.step()
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    sizes = torch.linalg.svdvals(moved["block.layers.0.weight"]) / (1e-2 * (32 / 16) ** 0.5)
    assert sizes.min() > 0.4 and sizes.max() < 1.4
    adamw = {"embedding.weight": 1e-2, "norm.weight": 1e-2, "block.layers.0.bias": 0.2}
    for name, rate in adamw.items():  # its first step moves all by the rate
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], rate), rtol=1e-2, atol=1e-5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 1e-2, 1e-2, 0.2])


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adafactor", "muon"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    def trained(split: Callable[[nn.Module, Optimizer], Optimizer]) -> nn.Module:
        model = network(dtype)
        optimizer = make(model, name)
        steps(model, optimizer, 3)
        optimizer = split(model, optimizer)
        steps(model, optimizer, 3, start=3)
        return model

    def resumed(model: nn.Module, optimizer: Optimizer) -> Optimizer:
        fresh = make(model, name)
        fresh.load_state_dict(through_a_file(optimizer.state_dict()))
        return fresh

    straight, again = trained(lambda _, optimizer: optimizer), trained(resumed)
    for p, q in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
