"""Run and time all four stages with the released shape, from files to an evaluation at 32,768 tokens.

    python -m benchmarks.gpu_pipeline                   random weights of chatglm2-6b's shape, qlora, on a GPU
    python -m benchmarks.gpu_pipeline --preset tiny     the same in miniature, also on a CPU
    python -m benchmarks.gpu_pipeline --work /dev/shm   weights and a clone are written there, and removed after

The stages run as under DVC, but are started directly, so that a bare machine does not need DVC. The tokenizer is the
embedded base's, whose ids are all within the released vocabulary. Random weights give no useful answers, but times and
memory are those of real weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import print_machine
from benchmarks.train_data import write_released_weights

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("convert", "tokenize", "train", "evaluate")
PRESET, STEPS, LENGTH = "chatglm2-6b", 20, 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default=PRESET, help=f"shape of the network ({PRESET})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--method", default="qlora", choices=["lora", "qlora", "ptuning"])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps ({STEPS})")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"number of tokens in the long context ({LENGTH:,})")
    parser.add_argument("--work", type=Path, help="folder for the weights and the clone; default: a temporary folder")
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        clone = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        base = clone / "models" / "random"
        write_released_weights(base, arguments.preset, torch.device(arguments.device))
        (base / "tokenizer.model").write_bytes((ROOT / "models/base/tokenizer.model").read_bytes())
        _set_params(clone, arguments)
        print_table(run_stages(clone))


def run_stages(clone: Path) -> dict[str, tuple[float, float | None]]:
    """Run the stages, and return each stage's seconds and its peak in GiB, if reported.

    Raises:
        SystemExit: a stage failed; its output was printed.
    """
    found = {}
    for stage in STAGES:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=clone,
            env=os.environ | {"PYTHONPATH": str(clone)},
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{stage} failed, see above")
        metrics = json.loads((clone / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
        found[stage] = (time.perf_counter() - started, metrics.get("peak_memory_gib"))
    return found


def print_table(found: dict[str, tuple[float, float | None]]) -> None:
    """Print the results as Markdown, with the total at the end."""
    print("| stage | s | peak GiB |\n|---|---|---|")
    for stage, (seconds, peak) in found.items():
        print(f"| {stage} | {seconds:,.0f} | {'–' if peak is None else f'{peak:.1f}'} |")
    print(f"| all four | {sum(seconds for seconds, _ in found.values()):,.0f} | |")


def _set_params(clone: Path, arguments: argparse.Namespace) -> None:
    changes = {
        "model.base": "models/random",
        "model.rope.type": "linear",
        "model.rope.factor": 16,
        "train.method": arguments.method,
        "train.max_steps": arguments.steps,
        "evaluate.generation.rows": 16,
        "evaluate.retrieval.lengths": f"[{arguments.length}]",
        "evaluate.retrieval.base_lengths": "[]",
        "evaluate.retrieval.contexts": 1,
        "evaluate.retrieval.questions": 25,
    }
    command = [sys.executable, "scripts/set_params.py", *(f"{key}={value}" for key, value in changes.items())]
    subprocess.run(command, cwd=clone, check=True)


if __name__ == "__main__":
    main()
