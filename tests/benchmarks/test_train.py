"""Every row of benchmarks/train.py at the smallest sizes: the code runs, the figures don't matter."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

MEASURES = {
    "speed": ("the original recipe", "GlmForCausalLM", "share of the matrix rate"),
    "quality": ("bf16 against fp32",),
    "checkpoint": ("time lost to checkpoints",),
    "full": (
        "peak without file pages",
        "full, large: estimate",
        "forward + backward",
        "whole step",
        "loss of a fixed batch",
    ),
    "nf4": ("qlora nf4, large: peak", "qlora nf4, large: estimate"),
    "export": ("export of a LoRA, large: peak", "with its check"),
}


# All of them take minutes without bf16 arithmetic, where the other implementation's products are emulated.
QUICK = "full"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == QUICK else pytest.mark.slow) for n in MEASURES])
def test_a_row_is_measured(name: str) -> None:
    sizes = ["--preset", "tiny", "--large", "tiny", "--steps", "6", "--large-steps", "3", "--tokens", "48"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", "--only", name, "--threads", "1", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("\nmeasure")[2]
    for words in MEASURES[name]:
        assert words in table
