"""The GPU's benchmark on the CPU at the smallest sizes: its rows run, and its tables come into a document."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.attention_kernels import fastest, seconds_by_kernel
from benchmarks.gpu import BEGIN, END, Clock, tables, write_between_marks
from benchmarks.gpu_rows import TRAINED
from tests.conftest import ROOT

FIGURES = {
    "rate": {"bfloat16": 8e14},
    "lora-8192": {
        "step": 0.5,
        "tokens": 8192.0,
        "operations": 2e14,
        "peak_gib": 20.0,
        "estimate_gib": 22.0,
        "recomputed": 3.0,
    },
    "glm-lora-8192": {"step": 1.1, "peak_gib": 19.7},
    "read-32768": {"read": 1.2, "answered": 7.1, "peak_gib": 16.1},
}


def test_a_row_says_what_was_measured_and_the_alternative_beside_it() -> None:
    text = tables(FIGURES, ["record"], "a card, torch 2.11")
    assert "On a card, torch 2.11; products of random bf16 matrices 800.0 TFLOP/s." in text
    words = TRAINED["lora-8192"].words
    assert f"| {words} | 0.500 | 16,384 | 400.0 | 50% | 20.0 | +10% | 3 | 1.100 | 19.7 | 2.20 |" in text
    assert "| read-32768 | 1.2 | 7.1 | 16.1 |" in text
    assert text.endswith("Not measured, for want of time or memory: record.")
    rows = [line for line in text.splitlines() if line.startswith(("| LoRA", "| NeMo"))]
    assert {line.count("|") for line in rows} == {12}


def test_tables_take_the_place_of_those_before(tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_between_marks(file, "new")
    assert file.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    file.write_text("no place", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no place for the tables"):
        write_between_marks(file, "new")


def test_the_document_of_the_project_has_a_place_for_them() -> None:
    text = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_the_clock_runs_out() -> None:
    assert 59 < Clock(1).left <= 60
    assert Clock(0).left <= 0


def test_kernels_that_are_not_there_are_left_out() -> None:
    """The CPU has the flash kernel alone, or none for this shape."""
    found = seconds_by_kernel(torch.device("cpu"), 32, heads=4, groups=4, channels=16)
    assert set(found) <= {"flash", "efficient", "cudnn"} and all(seconds > 0 for seconds in found.values())
    assert fastest({"flash": 2.0, "cudnn": 1.0}) == "cudnn"


@pytest.mark.slow
def test_every_row_runs(tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    file.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    sizes = ["--device", "cpu", "--preset", "tiny", "--shorter", "128"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *sizes, "--docs", str(file), "--work", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout
    text = file.read_text(encoding="utf-8")
    for row in TRAINED.values():
        assert f"| {row.words} |" in text
    assert "Not measured" not in text


@pytest.mark.slow
def test_the_released_layout_goes_through_all_four_stages() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_pipeline", "--preset", "tiny", "--steps", "3", "--length", "1024"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = [line.split(" | ")[0] for line in done.stdout.splitlines()[-5:]]
    assert named == ["| convert", "| tokenize", "| train", "| evaluate", "| all four"]
