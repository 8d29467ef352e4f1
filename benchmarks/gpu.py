"""Measure the released shape on a GPU: tuning, against GlmForCausalLM with peft and Trainer, and reading long contexts.

    python -m benchmarks.gpu                          all rows in at most ten minutes, and docs/gpu.md's tables
    python -m benchmarks.gpu --only lora-2048         some of them
    python -m benchmarks.gpu --work /dev/shm          random weights (26 GiB) are written there, and removed after

The benchmark needs torch, the project's other packages and this checkout, but no data and no network. Each row of the
tables is measured in a separate process on the same random weights and training rows, followed by its alternative. A
step's time is that of the fastest step after the first. Peak memory is what torch's allocator handed out, including
loading. Rows that were skipped for lack of time are listed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu_rows import QUESTIONS, READ, TRAINED, measure
from benchmarks.machine import print_machine
from benchmarks.train_small import Figures
from glm2core.console import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent
MARK = "measured: "
NAMES = [*TRAINED, *READ]
# The published record for this job on one H100, from NeMo Automodel's own tables: tokens/s and TFLOP/s
RECORD = "NeMo Automodel, LoRA of rank 16 on 7 to 8 B, 4,096 x 2, dropout 0, an H100 | | 12,473 to 14,110 | 402 to 423"
BEGIN, END = "<!-- benchmarks.gpu writes from here -->", "<!-- to here -->"
SHORTEST = 30  # minimum seconds of a row
_TRAINED_HEAD = (
    "| run | step s | tokens/s | TFLOP/s | of the matrix rate | peak GiB | estimate | recomputed blocks "
    "| Glm + peft + Trainer: step s | peak GiB | times faster |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    arguments = _arguments()
    device = torch.device(arguments.device)
    if arguments.measure:
        quiet_libraries()
        found = measure(arguments.measure, arguments.work, arguments.preset, device, arguments.shorter)
        print(MARK + json.dumps(found))
        return
    print_machine()
    clock = Clock(arguments.minutes)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        arguments.work = Path(folder)
        found = _all(arguments, clock)
    text = tables(found, [name for name in arguments.only if name not in found], machine(device))
    print(f"\n{text}")
    if arguments.docs is not None:
        write_between_marks(arguments.docs, text)


class Clock:
    """Counts how much is left of the minutes that a call may take."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()


def machine(device: torch.device) -> str:
    """Return the names of the card and the libraries for the tables."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return f"{name}, torch {torch.__version__}"


def tables(found: dict[str, Figures], left_out: list[str], on: str) -> str:
    """Return both tables in Markdown, and the names of the rows that were skipped for lack of time."""
    rate = found["rate"]["bfloat16"]
    lines = [f"On {on}; products of random bf16 matrices {rate / 1e12:,.1f} TFLOP/s.", "", _TRAINED_HEAD]
    lines += [_trained_line(name, found, rate) for name in TRAINED if name in found]
    lines.append(f"| {RECORD} | | | | | | | |")
    read = [name for name in READ if name in found]
    if read:
        lines += ["", f"| context read, {QUESTIONS} questions | read s | answered s | peak GiB |", "|---|---|---|---|"]
        for name in read:
            figures = found[name]
            lines.append(f"| {name} | {figures['read']:.1f} | {figures['answered']:.1f} | {figures['peak_gib']:.1f} |")
    if left_out:
        lines += ["", f"Not measured, for want of time or memory: {', '.join(left_out)}."]
    return "\n".join(lines)


def _trained_line(name: str, found: dict[str, Figures], rate: float) -> str:
    ours, theirs = found[name], found.get(f"glm-{name}")
    speed = ours["operations"] / ours["step"]
    cells = [
        TRAINED[name].words,
        f"{ours['step']:.3f}",
        f"{ours['tokens'] / ours['step']:,.0f}",
        f"{speed / 1e12:,.1f}",
        f"{speed / rate:.0%}",
        f"{ours['peak_gib']:.1f}",
        f"{ours['estimate_gib'] / ours['peak_gib'] - 1:+.0%}",
        f"{ours['recomputed']:.0f}",
    ]
    if theirs is not None:
        cells += [f"{theirs['step']:.3f}", f"{theirs['peak_gib']:.1f}", f"{theirs['step'] / ours['step']:.2f}"]
    return f"| {' | '.join([*cells, *[''] * (11 - len(cells))])} |"


def write_between_marks(file: Path, text: str) -> None:
    """Replace the tables in a document.

    Raises:
        SystemExit: the document has no place for the tables.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{file} has no place for the tables: a line {BEGIN} and after it a line {END}")
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--preset", default="chatglm2-6b", help="shape of the network")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=10, help="minutes that the whole benchmark may take")
    parser.add_argument("--shorter", type=int, default=1, help="divisor of the rows' lengths, to try the benchmark")
    parser.add_argument("--work", type=Path, help="folder for the weights; default: the system's temporary one")
    parser.add_argument("--docs", type=Path, help="the document whose tables are written (docs/gpu.md)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.docs is None and arguments.device == "cuda" and arguments.only == NAMES:
        arguments.docs = ROOT / "docs/gpu.md"
    return arguments


def _all(arguments: argparse.Namespace, clock: Clock) -> dict[str, Figures]:
    """Return the results of every row for which there was time and which did not fail."""
    found: dict[str, Figures] = {}
    rows = [name for name in NAMES if name in arguments.only]
    for name in ("weights", "rate", *(n for row in rows for n in _with_alternative(row))):
        figures = _in_a_process(name, arguments, clock)
        if figures is None and name in ("weights", "rate"):
            sys.exit(f"benchmarks.gpu: {name} failed")
        if figures is not None:
            found[name] = figures
    return found


def _with_alternative(name: str) -> list[str]:
    return [name, f"glm-{name}"] if name in TRAINED and TRAINED[name].beside else [name]


def _in_a_process(name: str, arguments: argparse.Namespace, clock: Clock) -> Figures | None:
    """Measure a row in a separate process, with its own peaks and kernel caches; None if it failed or time ran out."""
    if clock.left < SHORTEST and arguments.device == "cuda":
        return None
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name, "--work", str(arguments.work)]
    command += ["--preset", arguments.preset, "--device", arguments.device, "--shorter", str(arguments.shorter)]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=max(1, clock.left)
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: no time was left", flush=True)
        return None
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if done.returncode or line is None:
        print(f"{done.stdout}\n{name}: failed", flush=True)
        return None
    print(f"{name}: {line.removeprefix(MARK)}, the process {time.perf_counter() - started:.0f} s", flush=True)
    figures: Figures = json.loads(line.removeprefix(MARK))
    return figures


if __name__ == "__main__":
    main()
