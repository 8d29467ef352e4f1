"""Compare the speed of glm2core's attention with that of transformers' `sdpa` function on this CPU.

    python -m benchmarks.attention

The two functions are timed in turn, and the best of several times counts. The ratio carries over to other machines.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.machine import print_machine
from glm2core.model.attention import attention

# name, heads, channels, rows, query tokens, keys, training
CASES = (
    ("training, rows of 64", 12, 64, 32, 64, 64, True),
    ("training, rows of 150", 12, 64, 13, 150, 150, True),
    ("training, rows of 256", 12, 64, 8, 256, 256, True),
    ("training, rows of 2,048", 12, 64, 1, 2048, 2048, True),
    ("next token after 1,024", 32, 128, 1, 1, 1024, False),
    ("next token after 16,384", 32, 128, 1, 1, 16384, False),
    ("2,048 more after 6,144", 32, 128, 1, 2048, 8192, False),
)
GROUPS = 2


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    print(f"{'case':<28}{'dtype':>10}{'theirs ms':>12}{'ours ms':>10}{'ratio':>8}")
    for name, *case in CASES:
        for dtype in (torch.bfloat16, torch.float32):
            theirs, ours = _measure(*case, dtype)
            print(f"{name:<28}{str(dtype)[6:]:>10}{theirs:>12.2f}{ours:>10.2f}{theirs / ours:>8.2f}")


def _measure(
    heads: int, channels: int, rows: int, tokens: int, keys: int, training: bool, dtype: torch.dtype
) -> tuple[float, float]:
    query = torch.randn(rows, tokens, heads, channels, dtype=dtype).transpose(1, 2).requires_grad_(training)
    key, value = (
        torch.randn(rows, keys, GROUPS, channels, dtype=dtype).transpose(1, 2).requires_grad_(training)
        for _ in range(2)
    )
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // GROUPS, True
    later = 1 < tokens < keys

    def theirs() -> Tensor:
        mask = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)[None, None] if later else None
        return sdpa_attention_forward(module, query, key, value, mask)[0]

    def ours() -> Tensor:
        return attention(module, query, key, value, None, "sdpa")[0]

    return _best(theirs, training), _best(ours, training)


def _best(call: Callable[[], Tensor], training: bool, repeats: int = 5) -> float:
    """Return the shortest time in milliseconds."""
    times = []
    with torch.set_grad_enabled(training):
        for _ in range(repeats):
            start = time.perf_counter()
            out = call()
            if training:
                out.sum().backward()
            times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
