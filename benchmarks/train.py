"""Compare training with other ways to do the same work, and measure the cost of the 6.24 B network.

    python -m benchmarks.train                                 all rows (hours: the 6.24 B network is trained)
    python -m benchmarks.train --only speed checkpoint         some of them
    python -m benchmarks.train --data alpaca.json --steps 120  different rows, more steps

Each row is measured in a separate process, and ratios compare successive runs on this machine. `full`, `nf4` and
`export` write random weights of the released shape (12.5 GB) into a temporary folder and remove them afterwards.
`export` needs as much space again for its result.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "measured: "

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    measure: str
    target: str
    found: str
    met: bool


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.measure:
        print(MARK + json.dumps(measure(arguments)))
        return
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    in_a_process("machine", arguments)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        arguments.work = Path(folder)
        rows = [row for name in arguments.only for row in ROWS[name](lambda part: in_a_process(part, arguments))]
    width = max(len(row.measure) for row in rows)
    print(f"\n{'measure':<{width}}  {'target':>10}  found")
    for row in rows:
        print(f"{row.measure:<{width}}  {row.target:>10}  {row.found}{'' if row.met else '   MISSED'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--preset", default="small", help="shape of the small network")
    parser.add_argument("--large", default="chatglm2-6b", help="shape of the network in full, nf4 and export")
    parser.add_argument("--layers", type=int, default=0, help="blocks in full, nf4 and export; 0 = the shape's number")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw/alpaca_en.json", help="an Alpaca file")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run with the small network")
    parser.add_argument("--large-steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=500, help="number of tokens in the one row of full and nf4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="folder for the weights; default: the system's temporary one")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


def measure(arguments: argparse.Namespace) -> Figures:
    """Take one measurement in this process."""
    import torch

    from benchmarks import train_large, train_small
    from benchmarks.machine import print_machine
    from benchmarks.train_data import tokenized_rows, write_released_weights
    from glm2core.model.presets import preset_config

    torch.set_num_threads(arguments.threads)
    if arguments.measure == "machine":
        print_machine()
        return {}
    weights = arguments.work / "weights"
    if arguments.measure == "weights":
        if not weights.is_dir():
            write_released_weights(weights, arguments.large, layers=arguments.layers)
        return {}
    if arguments.measure in ("full", "nf4"):
        run = train_large.full if arguments.measure == "full" else train_large.quantized
        return run(weights, arguments.work, tokens=arguments.tokens, steps=arguments.large_steps)
    if arguments.measure == "export":
        return train_large.exported(weights, arguments.work, data=arguments.data)
    recipes = {
        "ours": train_small.ours,
        "original": train_small.original,
        "glm": train_small.glm_trainer,
        "quality": train_small.validation_losses,
        "checkpoint": train_small.checkpoint_cost,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = tokenized_rows(arguments.data, Path(folder), preset_config(arguments.preset).padded_vocab_size)
        return recipes[arguments.measure](arguments.preset, rows, arguments.steps)


def in_a_process(name: str, arguments: argparse.Namespace) -> Figures:
    """Take one measurement in a separate process, with its own peaks and kernel caches."""
    print(f"== {name}", flush=True)
    names = ("preset", "large", "layers", "data", "steps", "large_steps", "tokens", "threads", "work")
    options = [part for key in names for part in (f"--{key.replace('_', '-')}", str(getattr(arguments, key)))]
    command = [sys.executable, "-m", "benchmarks.train", "--measure", name, *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found: Figures | None = None
    for line in process.stdout:
        if line.startswith(MARK):
            found = json.loads(line.removeprefix(MARK))
        print(f"  {line}", end="", flush=True)
    if process.wait() or found is None:
        raise SystemExit(f"benchmarks.train: {name} failed")
    return found


Measured = Callable[[str], Figures]


def speed(measured: Measured) -> list[Row]:
    ours, original, glm = (measured(name) for name in ("ours", "original", "glm"))
    to_original = ours["tokens_per_second"] / original["tokens_per_second"]
    to_glm = ours["tokens_per_second"] / glm["tokens_per_second"]
    rate = f"{ours['tokens_per_second']:,.0f} tokens/s"
    return [
        Row("tokens/s against the original recipe", ">= 10x", f"{to_original:.1f}x ({rate})", to_original >= 10),
        Row("tokens/s against GlmForCausalLM + Trainer", ">= 1.4x", f"{to_glm:.2f}x", to_glm >= 1.4),
        Row("share of the matrix rate", ">= 60%", f"{ours['mfu']:.0%}", ours["mfu"] >= 0.6),
    ]


def full(measured: Measured) -> list[Row]:
    measured("weights")
    found = measured("full")
    fall = f"{found['first_loss']:.3f} to {found['last_loss']:.3f}"
    seconds = f"{found['step']:.1f} s: {found['forward_and_backward']:.1f} and the update {found['update']:.1f}"
    peak = f"{found['peak_gib']:.2f} ({found['recomputed']:.0f} blocks recomputed)"
    return [
        Row("full, large: peak without file pages", "<= 16 GiB", peak, found["peak_gib"] <= 16),
        estimated("full", found),
        Row(
            "full, large: forward + backward",
            f">= {found['share_target']:.0%}",
            f"{found['share']:.0%} of {found['rate'] / 1e9:,.0f} GFLOP/s",
            found["share"] >= found["share_target"],
        ),
        Row("full, large: whole step", "<= 90 s", seconds, found["step"] <= 90),
        Row("full, large: loss of a fixed batch", "falls", fall, found["last_loss"] < found["first_loss"]),
    ]


def nf4(measured: Measured) -> list[Row]:
    measured("weights")
    found = measured("nf4")
    peak, step = found["peak_gib"], found["step"]
    return [
        Row("qlora nf4, large: peak", "<= 8 GiB", f"{peak:.2f} ({step:.1f} s a step)", peak <= 8),
        estimated("qlora nf4", found),
    ]


def exported(measured: Measured) -> list[Row]:
    measured("weights")
    found = measured("export")
    return [
        Row("export of a LoRA, large: peak", "<= 20 GiB", f"{found['peak_gib']:.2f}", found["peak_gib"] <= 20),
        Row("export of a LoRA, large: with its check", "<= 900 s", f"{found['seconds']:.0f}", found["seconds"] <= 900),
    ]


def estimated(name: str, found: Figures) -> Row:
    """Compare the peak with the estimate of `python -m glm2core memory`."""
    off = found["estimate_gib"] / found["peak_gib"] - 1
    return Row(f"{name}, large: estimate", "within 15%", f"{found['estimate_gib']:.2f} ({off:+.0%})", abs(off) <= 0.15)


def quality(measured: Measured) -> list[Row]:
    found = measured("quality")
    losses = f"{found['difference']:.2%} ({found['bfloat16']:.4f}, fp32 {found['float32']:.4f})"
    return [Row("validation loss, bf16 against fp32 AdamW", "within 1%", losses, found["difference"] <= 0.01)]


def checkpoint(measured: Measured) -> list[Row]:
    found = measured("checkpoint")
    taken = f"{found['share']:.2%} ({found['write']:.2f} s a write, {found['step']:.2f} s a step)"
    return [Row("time lost to checkpoints", "<= 2%", taken, found["share"] <= 0.02)]


ROWS: dict[str, Callable[[Measured], list[Row]]] = {
    "speed": speed,
    "full": full,
    "nf4": nf4,
    "export": exported,
    "quality": quality,
    "checkpoint": checkpoint,
}


if __name__ == "__main__":
    main()
