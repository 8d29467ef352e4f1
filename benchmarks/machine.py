"""The machine of a benchmark: the CPU's class and its matrix rates."""

import torch

from glm2core.hardware import computes_in, cpu_class
from glm2core.training.measure import product_rate

CPU = torch.device("cpu")


def print_machine() -> None:
    """Print one line, within about a second: class, threads, and the rates of fp32 and bf16 products."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        emulated = "" if computes_in(dtype, CPU) else " (no such arithmetic)"
        rates.append(f"{product_rate(dtype, CPU) / 1e9:,.1f} GFLOP/s in {str(dtype).removeprefix('torch.')}{emulated}")
    print(f"CPU: {cpu_class()}, {torch.get_num_threads()} threads, {', '.join(rates)}", flush=True)
