"""Muon against the SVD's polar factor, and against torch's own in bf16."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from glm2core.training.muon import Muon, orthogonalized

# Of several sides and lengths, tall and wide, so that results must find their way back
SHAPES = [(48, 16), (16, 40), (16, 16), (48, 16), (24, 16), (20, 12)]


def matrices(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_directions_are_those_of_the_polar_factor() -> None:
    for matrix, found in zip(matrices(), orthogonalized(matrices()), strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        lengths = left.mT @ found.double() @ right.mT
        expected = values / values.norm()
        for _ in range(5):
            expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
        assert_close(lengths, torch.diag(expected), rtol=0, atol=1e-5)  # the polar factor itself has a diagonal of ones
        assert expected.min() > 0.68
        assert expected.max() < 1.21


def test_a_batch_gives_what_each_matrix_gives_alone() -> None:
    together = orthogonalized(matrices())
    for matrix, found in zip(matrices(), together, strict=True):
        assert_close(orthogonalized([matrix])[0], found, rtol=0, atol=1e-6)


def test_a_gradient_of_zero_moves_nothing() -> None:
    assert orthogonalized([torch.zeros(8, 4)])[0].equal(torch.zeros(8, 4))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch_up_to_its_rounding_to_bf16(weight_decay: float) -> None:
    ours, theirs = ([nn.Parameter(m.clone()) for m in matrices()] for _ in range(2))
    optimizers = [
        Muon([{"params": ours, "weight_decay": weight_decay}], lr=0.02),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="original"),
    ]
    for step in range(4):
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, matrices(seed=1 + step), strict=True):
                parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    for own, other, start in zip(ours, theirs, matrices(), strict=True):
        assert (own - other).norm() < 0.02 * (own - start).norm()
