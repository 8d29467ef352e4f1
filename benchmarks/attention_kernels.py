"""Find the fastest of torch's attention kernels on this GPU, in forward and backward with the released shape.

    python -m benchmarks.attention_kernels             a table, and a row of glm2core/model/attention_kernels.csv
    python -m benchmarks.attention_kernels --dry       only the table

The shape is 32 query heads on 2 key/value heads with 128 channels each. Attention is causal and computed in bf16, or in
float16 if the GPU does not support bf16.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from glm2core.hardware import computes_in
from glm2core.model.attention_kernels import KERNELS, read_table, with_row, write_table

HEADS, GROUPS, CHANNELS = 32, 2, 128
TOKENS = (2048, 8192)
TRIALS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    found = {tokens: seconds_by_kernel(device, tokens) for tokens in TOKENS}
    for tokens, seconds in found.items():
        print(f"{tokens} tokens: " + ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items()))
    name = fastest(found[max(TOKENS)])
    print(f"fastest at {max(TOKENS)}: {name}")
    if not arguments.dry:
        write_table(with_row(read_table(), torch.cuda.get_device_capability(device), torch.__version__, name))


def fastest(seconds: dict[str, float]) -> str:
    """The fastest kernel."""
    return min(seconds, key=seconds.__getitem__)


def seconds_by_kernel(
    device: torch.device, tokens: int, heads: int = HEADS, groups: int = GROUPS, channels: int = CHANNELS
) -> dict[str, float]:
    """Return the median time of forward and backward with each kernel that supports this shape on `device`."""
    dtype = torch.bfloat16 if computes_in(torch.bfloat16, device) else torch.float16
    shapes = ((1, heads, tokens, channels), *[(1, groups, tokens, channels)] * 2)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
    gradient = torch.randn_like(query)
    found = {}
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel([kernel]):
                taken = []
                for _ in range(TRIALS):
                    started = _now(device)
                    context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
                    torch.autograd.grad(context, (query, key, value), gradient)
                    taken.append(_now(device) - started)
        except RuntimeError:  # "No available kernel": none for this GPU or shape
            continue
        found[name] = statistics.median(taken[1:])
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
