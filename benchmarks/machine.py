"""Describes a benchmark's machine by the CPU's class and the speed of its matrix multiplications."""

import torch

from glm2core.hardware import computes_in, cpu_class
from glm2core.training.measure import product_rate

CPU = torch.device("cpu")


def print_machine() -> None:
    """Print one line with the class, the threads, and the speed of fp32 and bf16 matrix multiplications."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        emulated = "" if computes_in(dtype, CPU) else " (no such arithmetic)"
        rates.append(f"{product_rate(dtype, CPU) / 1e9:,.1f} GFLOP/s in {str(dtype).removeprefix('torch.')}{emulated}")
    print(f"CPU: {cpu_class()}, {torch.get_num_threads()} threads, {', '.join(rates)}", flush=True)
