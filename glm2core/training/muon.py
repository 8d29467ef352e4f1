"""Muon: orthogonalized momentum (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

`torch.optim.Muon` takes one matrix at a time and multiplies in bf16, which is a hundred times slower than fp32 on a CPU
without bf16 arithmetic. Here all matrices are orthogonalized together in fp32, by multiplying their Gram matrices. For
matrices four times as long as wide, this takes half as many operations as the plain iteration.

In shapes, `N` is the number of matrices of one shape, `m` their shorter side, and `n` their longer side.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# The post's quintic polynomial maps singular values above 0.003 of the Frobenius norm to between 0.68 and 1.21.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    The update of a matrix [rows, columns] has singular values near sqrt(max(1, rows / columns)), as in the post.

    Args:
        groups: parameter groups with `lr` and `weight_decay`.
        momentum: share of the gradients' running mean that each step keeps.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            directions = orthogonalized([self._momentum(p, group["momentum"]) for p in parameters])
            for parameter, direction in zip(parameters, directions, strict=True):
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient after Nesterov momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Replace each matrix with the nearest matrix whose singular values are all about 1, in fp32 and the same shape.

    An iteration X <- (a + b G + c G^2) X with G = X X^T multiplies X by a polynomial of G on the left, and G by the
    same polynomial on both sides. So X is read only twice, once for the first G and once to multiply it by the
    product of all polynomials. All matrices in between are m x m, so matrices of any length n share one batch.
    """
    stacks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        stacks[min(matrix.shape), max(matrix.shape)].append(index)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for side in sorted({short for short, _ in stacks}):
        of_side = [(shape, found) for shape, found in stacks.items() if shape[0] == side]
        wide = [torch.stack([_wide(matrices[index]) for index in found]) for _, found in of_side]  # [N, m, n] each
        wide = [x / x.flatten(1).norm(dim=1).clamp(min=_SMALLEST_NORM)[:, None, None] for x in wide]
        factors = _product_of_polynomials(torch.cat([x @ x.mT for x in wide]))  # [all N, m, m]
        for (_, found), x, factor in zip(of_side, wide, factors.split([len(x) for x in wide]), strict=True):
            for index, result in zip(found, factor @ x, strict=True):
                results[index] = result if matrices[index].shape[0] == side else result.mT
    return results


def _wide(matrix: Tensor) -> Tensor:
    """[m, n] in fp32."""
    return (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).float()


def _product_of_polynomials(gram: Tensor) -> Tensor:
    """The product of all iterations' polynomials, [N, m, m], from the first Gram matrices [N, m, m]."""
    a, b, c = _COEFFICIENTS
    product = None
    for left in reversed(range(_ITERATIONS)):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if left:
            gram = polynomial @ gram @ polynomial  # both are symmetric
    assert product is not None
    return product
