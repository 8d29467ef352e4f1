"""Compare a LoRA step with one autograd function (glm2core/model/lora.py) and a step with peft's layers, alternating.

    python -m benchmarks.lora                     the 86 M network, rank 8 on all four linears, 8 rows of 256 tokens
    python -m benchmarks.lora --dtype float32     the same with fp32 weights
    GLM2CORE_CPU=avx2 python -m benchmarks.lora   as on a CPU without bf16 arithmetic: bf16 weights, fp32 products

The default has no dropout (`train.lora.dropout: 0`). peft is measured without dropout and with its usual 0.05. A step
is forward, backward and AdamW. Each figure is the median of all steps, and each ratio that of alternating steps.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.machine import print_machine
from glm2core.console import quiet_libraries
from glm2core.hardware import choose_device
from glm2core.labels import IGNORED
from glm2core.model.adapters import adapt
from glm2core.model.loading import new_model
from glm2core.model.presets import preset_config
from glm2core.params import LoraParams, PrefixParams
from glm2core.training.optimizer import make_optimizer

TARGETS = {"peft, dropout 0": 1.08, "peft, dropout 0.05": 1.15}
WARM = 2
LORA = LoraParams()


def main() -> None:
    arguments = _arguments()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    print_machine()
    device = choose_device(arguments.device, key="--device")
    networks = {
        "ours, dropout 0": adapt(_base(arguments, device), "lora", LORA, PrefixParams()),
        "peft, dropout 0": of_peft(_base(arguments, device), 0.0),
        "peft, dropout 0.05": of_peft(_base(arguments, device), 0.05),
    }
    steps = {name: _step(model.train(), arguments, device) for name, model in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM + arguments.steps):
        for name, step in steps.items():
            taken = step()
            if number >= WARM:
                seconds[name].append(taken)
    ours = seconds["ours, dropout 0"]
    print(f"{arguments.preset}, {arguments.dtype}, {arguments.rows} rows of {arguments.tokens} tokens")
    print(f"{'':<20}{'step s':>9}{'ours is':>9}{'target':>9}")
    for name, found in seconds.items():
        ratio = statistics.median(theirs / own for theirs, own in zip(found, ours, strict=True))
        target = f"{TARGETS[name]:.2f}x" if name in TARGETS else ""
        print(f"{name:<20}{statistics.median(found):>9.3f}{ratio:>8.2f}x{target:>9}", flush=True)


def of_peft(network: Any, dropout: float) -> nn.Module:
    """Return the same adapter in peft's own layers, with its weights in fp32."""
    network.requires_grad_(False)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=dropout, target_modules=LORA.targets
    )
    return get_peft_model(network, config)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="shape of the network")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the frozen weights")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="tokens in a row; three fifths are the question")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    return parser.parse_args()


def _base(arguments: argparse.Namespace, device: torch.device) -> Any:
    vocabulary = preset_config(arguments.preset).padded_vocab_size
    network = new_model(arguments.preset, vocabulary, dtype=getattr(torch, arguments.dtype), seed=0)
    return network.to(device)


def _step(model: nn.Module, arguments: argparse.Namespace, device: torch.device) -> Callable[[], float]:
    """Make one training step on the same batch, and return its seconds."""
    optimizer = make_optimizer(model, name="adamw", learning_rate=1e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (arguments.rows, arguments.tokens), generator=generator)
    labels = ids.masked_fill(torch.arange(arguments.tokens) < arguments.tokens * 3 // 5, IGNORED)

    def step() -> float:
        _wait(device)
        started = time.perf_counter()
        model(input_ids=ids.to(device), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        return time.perf_counter() - started

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
