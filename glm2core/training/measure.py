"""Measures the machine's peak rate of matrix multiplication, which is the reference for a training's speed."""

import time

import torch

from glm2core.hardware import product_dtype

_SMALLEST_SIDE, _LARGEST_SIDE = 256, 8192
_LONG_ENOUGH = 0.005  # seconds; a multiplication as long as this reaches the machine's rate
_SECONDS = 0.3  # for the whole measurement


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of matrix multiplications with weights in `dtype` on `device`."""
    return product_rate(product_dtype(dtype, device), device)


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the fastest multiplication of square random matrices within a third of a second.

    The matrices grow only while a multiplication takes a few milliseconds, so that slow, emulated arithmetic can be
    measured as well.
    """
    end = time.perf_counter() + _SECONDS
    side, best = _SMALLEST_SIDE, 0.0
    a, b = _random_matrices(side, dtype, device)
    torch.matmul(a, b)  # the first multiplication in a process takes longer
    while True:
        seconds = _seconds_of_product(a, b)
        best = max(best, 2 * side**3 / seconds)
        if time.perf_counter() > end:
            return best
        if seconds < _LONG_ENOUGH and side < _LARGEST_SIDE:
            side *= 2
            a, b = _random_matrices(side, dtype, device)


def _random_matrices(side: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # The values have all magnitudes, because with zeros and ones a chip draws less power and clocks higher.
    generator = torch.Generator(device).manual_seed(0)  # leaves the run's own random numbers untouched
    drawn = torch.randn(2, side, side, dtype=torch.float32, device=device, generator=generator).to(dtype)
    return drawn[0], drawn[1]


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    _synchronize(a.device)
    start = time.perf_counter()
    torch.matmul(a, b)
    _synchronize(a.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
