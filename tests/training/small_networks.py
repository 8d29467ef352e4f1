"""Networks small enough to train in a test of an optimizer."""

import torch
from torch import nn
from torch.optim import Optimizer

from glm2core.training.optimizer import make_optimizer


class Block(nn.Module):
    """A linear with the name of a block's weight, which Muon takes."""

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
