"""Each command killed at random moments: nothing half-written is ever there, and the last run gives the usual bytes.

`--kills` says how often each is killed (20), `--seed` at which moments.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.training.conftest import folder_bytes, start_stage, write_project
from tests.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]

ROOT = Path(__file__).resolve().parents[2]
ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Command:
    """A command in a project after `dvc repro`, and what it writes.

    outs: files and folders that are whole or absent at any moment.
    unlike: names of files below them that differ from run to run by the time they took.
    """

    arguments: tuple[str, ...]
    outs: tuple[str, ...]
    unlike: tuple[str, ...] = ()


COMMANDS = {
    "convert": Command(("stages.convert",), ("data/converted", "reports/convert", "metrics/convert.json")),
    "tokenize": Command(("stages.tokenize",), ("data/tokenized", "reports/tokenize", "metrics/tokenize.json")),
    "train": Command(
        ("stages.train",), ("models/tuned", "reports/train", "metrics/train.json"), ("curves.csv", "train.json")
    ),
    "evaluate": Command(("stages.evaluate",), ("reports/evaluate", "metrics/evaluate.json"), ("evaluate.json",)),
    "predict": Command(
        (
            "glm2core",
            "predict",
            "models/tuned",
            ROWS,
            "-o",
            "answers.jsonl",
            "--max-new-tokens",
            "16",
            "--batch-size",
            "2",
        ),
        ("answers.jsonl",),
    ),
    "export": Command(("glm2core", "export", "models/tuned", "exported"), ("exported",)),
}


def start(folder: Path, command: Command) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command.arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "said.log").open("wb"),
    )


def finish(folder: Path, command: Command) -> float:
    started = time.perf_counter()
    process = start(folder, command)
    assert process.wait(timeout=600) == 0, (folder / "said.log").read_text()
    return time.perf_counter() - started


def written(folder: Path, command: Command) -> dict[str, dict[str, bytes]]:
    """The outs that are there, with the files in each."""
    found = {}
    for out in command.outs:
        place = folder / out
        if place.is_dir():
            found[out] = folder_bytes(place)
        elif place.exists():
            found[out] = {place.name: place.read_bytes()}
    return {
        out: {name: b"" if Path(name).name in command.unlike else content for name, content in files.items()}
        for out, files in found.items()
    }


def remove(folder: Path, command: Command) -> None:
    for out in command.outs:
        if (folder / out).is_dir():
            shutil.rmtree(folder / out)
        else:
            (folder / out).unlink(missing_ok=True)


def kills(wanted: int, draw: random.Random, seconds: float) -> Iterator[float]:
    """Moments spread over the time that a run takes, its start and end included."""
    for number in range(wanted):
        yield (number + draw.random()) / wanted * seconds


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_killed_at_random_moments(
    name: str, reproduced_project: Workspace, tmp_path: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    folder, command = tmp_path / "project", COMMANDS[name]
    shutil.copytree(reproduced_project.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    (folder / ROWS).write_text("".join(f'{{"prompt": "question {number}"}}\n' for number in range(24)))
    shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
    remove(folder, command)
    seconds = finish(folder, command)
    expected = written(folder, command)
    assert set(expected) == set(command.outs)
    others = {file: file.read_bytes() for file in (folder / "data").rglob("*") if file.is_file()}

    moments = list(kills(pytestconfig.getoption("--kills"), random.Random(seed), seconds))
    random.Random(seed).shuffle(moments)
    for number, moment in enumerate(moments):
        if number % 3 == 0:  # else what the one before has left is gone on with
            shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
        remove(folder, command)
        process = start(folder, command)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
        process.kill()
        process.wait()
        found = written(folder, command)
        assert all(found[out] == expected[out] for out in found), f"half-written by a kill after {moment:.2f} s"
    remove(folder, command)
    finish(folder, command)
    assert written(folder, command) == expected
    places = [(folder / out).parent for out in command.outs]
    leftovers = [left for place in places for kind in ("partial", "replaced") for left in place.glob(f".*.{kind}-*")]
    assert leftovers == [] and not list(folder.glob("answers.jsonl.*"))
    assert all(file.read_bytes() == content for file, content in others.items() if file.exists())


def test_one_of_two_processes_killed_at_random_moments(tmp_path: Path, seed: int, pytestconfig: pytest.Config) -> None:
    """Under torchrun: the other one ends too, and the next start goes on to the same bytes."""
    settings = {"dtype": "float32", "max_steps": 40, "logging_steps": 5, "eval_steps": 10, "save_steps": 2}
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, folder):
        write_project(place, settings)
    started = time.perf_counter()
    process = start_stage(whole, 2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    seconds = time.perf_counter() - started
    expected = folder_bytes(whole / "models/tuned")

    draw = random.Random(seed)
    for moment in kills(pytestconfig.getoption("--kills"), draw, seconds):
        launcher = start_stage(folder, 2)
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=moment)
        workers = [child for child in psutil.Process(launcher.pid).children() if "stages.train" in child.cmdline()]
        victims = workers or [psutil.Process(launcher.pid)]  # before there are workers: the launcher
        if launcher.poll() is None:
            draw.choice(victims).kill()
        output, _ = launcher.communicate(timeout=300)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive, output
        if (folder / "models/tuned").exists():  # it came to its end before
            assert folder_bytes(folder / "models/tuned") == expected
            shutil.rmtree(folder / "models")
            shutil.rmtree(folder / ".checkpoints")
    process = start_stage(folder, 2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert folder_bytes(folder / "models/tuned") == expected
