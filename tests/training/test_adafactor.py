"""Adafactor inside backward: exact on average, equal to transformers' own in fp32, and with constant memory."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from glm2core.errors import UserError
from glm2core.model.parameters import BLOCK_ELEMENTS
from glm2core.training.adafactor import RoundingAdafactor, round_stochastically
from glm2core.training.optimizer import make_optimizer
from tests.training.small_networks import make, network, steps


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, 0.0])
def test_stochastic_rounding_is_exact_on_average(value: float) -> None:
    source, target = torch.full((1 << 20,), value), torch.empty(1 << 20, dtype=torch.bfloat16)
    noise = torch.randint(1 << 16, source.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    round_stochastically(source.clone(), target, noise)
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


@pytest.mark.parametrize("shape", [(3, 5), (7,)])
def test_the_states_that_are_lent_are_those_that_transformers_begins(shape: tuple[int, ...]) -> None:
    """Our states use the names of its keys: with another name every block's moments would restart at each step."""
    weight = nn.Parameter(torch.ones(shape))
    theirs = Adafactor([weight], lr=1e-3, scale_parameter=False, relative_step=False)
    weight.grad = torch.ones(shape)
    theirs.step()
    ours = make_optimizer(nn.ParameterList([weight]), name="adafactor", learning_rate=1e-3, weight_decay=0.0)
    (block,) = ours.state_dict()["blocks"]["0"]
    expected = theirs.state[weight]
    assert block.keys() == expected.keys()
    for name, value in block.items():
        assert torch.as_tensor(value).shape == torch.as_tensor(expected[name]).shape or name == "RMS", name


def test_large_matrices_are_taken_in_blocks_of_rows() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 1 << 19, dtype=torch.bfloat16))
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


def test_bf16_weights_drift_as_fp32_ones_do() -> None:
    """Blocks share one table of random numbers; over many of them the mean update must still be the exact one."""
    blocks, rate = 4, 1e-4  # an update is 1/80 of what separates two neighbours of 1 in bf16
    weight = nn.Parameter(torch.ones(blocks * BLOCK_ELEMENTS // 256, 256, dtype=torch.bfloat16))
    optimizer = make_optimizer(nn.ParameterList([weight]), name="adafactor", learning_rate=rate, weight_decay=0.0)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert (1 - weight.detach().double().mean()).item() == pytest.approx(10 * rate, rel=0.05)


GROWTH = """
import resource, torch
from torch import nn
from glm2core.training.optimizer import make_optimizer

weight = nn.Parameter(torch.ones(8192, 4096, dtype=torch.bfloat16))
optimizer = make_optimizer(nn.ParameterList([weight]), name="adafactor", learning_rate=1e-4, weight_decay=0.0)
weight.grad = torch.ones_like(weight)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
optimizer.step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / weight.numel())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB there")
def test_a_step_needs_less_than_a_copy_of_the_weights() -> None:
    """The norm once made an fp32 copy of the whole gradient: 1 GiB for chatglm2-6b's output layer."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 2  # bytes a weight
