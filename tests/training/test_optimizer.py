"""Updates that bf16 would swallow, and Adafactor inside backward."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from glm2core.errors import UserError
from glm2core.training.optimizer import MasterWeights, RoundingAdafactor, make_optimizer, round_stochastically

SMALL_RATE = 1e-5


class Block(nn.Module):
    """A linear whose name says that it is a block's: Muon takes those."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 32)])

    @property
    def weight(self) -> nn.Parameter:
        return self.layers[0].weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers[0](inputs)


def network(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(32, 4)).to(dtype)


def make(model: nn.Module, name: str, in_backward: bool = False, learning_rate: float = 1e-3) -> Optimizer:
    return make_optimizer(
        model, name=name, learning_rate=learning_rate, weight_decay=0.1, in_backward=in_backward, seed=3
    )


def steps(model: nn.Module, optimizer: Optimizer, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        torch.manual_seed(100 + step)
        inputs = torch.randn(8, 16, dtype=model[0].weight.dtype)
        model(inputs).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


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


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, 0.0])
def test_stochastic_rounding_is_exact_on_average(value: float) -> None:
    source, target = torch.full((1 << 20,), value), torch.empty(1 << 20, dtype=torch.bfloat16)
    round_stochastically(source, target, torch.Generator().manual_seed(0))
    rounded = target.double()
    spacing = (rounded.max() - rounded.min()).item()
    assert len(rounded.unique()) <= 2
    assert spacing <= abs(value) / 128
    assert abs(rounded.mean().item() - source[0].item()) <= spacing * 5 / 1024  # five standard errors


def test_adafactor_in_backward_is_the_same_step_without_gradients_left() -> None:
    after, inside = network(), network()
    steps(after, make(after, "adafactor"), 4)
    optimizer = make(inside, "adafactor", in_backward=True)
    steps(inside, optimizer, 4)
    assert isinstance(optimizer, RoundingAdafactor)
    # Backward reaches the last layer first, so the rounding draws differ: compare what they round.
    for p, q in zip(after.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2**-7, rtol=2**-6)
        assert q.grad is None


def test_adafactor_in_fp32_is_transformers() -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    decayed = [p for p in theirs.parameters() if p.dim() > 1], [p for p in theirs.parameters() if p.dim() == 1]
    reference = Adafactor(
        [{"params": decayed[0], "weight_decay": 0.1}, {"params": decayed[1]}],
        lr=1e-3,
        scale_parameter=False,
        relative_step=False,
    )
    steps(ours, make(ours, "adafactor"), 4)
    steps(theirs, reference, 4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_large_matrices_are_taken_in_blocks_of_rows() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 1 << 20, dtype=torch.bfloat16))
    optimizer = make_optimizer(nn.ParameterList([weight]), name="adafactor", learning_rate=1e-2, weight_decay=0.0)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert [len(blocks) for blocks in optimizer.state_dict()["blocks"].values()] == [2]
    assert ((weight - before) * weight.new_tensor(1) != 0).float().mean() > 0.9


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    model = network()
    make(model, "adafactor", in_backward=True)
    first = model[0].weight.detach().clone()
    hidden = model[0](torch.randn(2, 16, dtype=torch.bfloat16))
    hidden.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"gradient of 0\.layers\.0\.(weight|bias) is not finite"):
        model[1](hidden).float().sum().backward()
    assert torch.equal(model[0].weight, first)


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
