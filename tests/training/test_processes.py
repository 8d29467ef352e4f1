"""Two real processes under torchrun train like one, stop together, and write one set of files."""

import csv
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from glm2core.labels import IGNORED
from glm2core.training.batches import TokenBudgetBatches, validation_batches
from tests.stages.data_project import run_of
from tests.training.conftest import folder_bytes, start_stage, write_project

FIGURES = {
    "dtype": "float32",
    "max_steps": 20,
    "logging_steps": 1,
    "eval_steps": 5,
    "save_steps": 5,
    "learning_rate": 3e-3,
}


def finish(folder: Path, processes: int = 2) -> str:
    process = start_stage(folder, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def curve(folder: Path, name: str, file: str = "curves.csv") -> list[float]:
    with (folder / "reports/train" / file).open(encoding="utf-8") as lines:
        return [float(row[name]) for row in csv.DictReader(lines)]


def project(folder: Path, **changes: object) -> Path:
    write_project(folder, FIGURES | changes)
    return folder


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list((folder / ".checkpoints").glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.01)


def workers(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes, by rank."""
    children = [child for child in psutil.Process(launcher.pid).children() if "stages.train" in child.cmdline()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes."""
    folder = project(tmp_path_factory.mktemp("two"))
    finish(folder)
    return folder


def test_two_processes_give_the_curve_of_one(two: Path, tmp_path: Path) -> None:
    one = project(tmp_path / "one", gradient_accumulation_steps=2)
    finish(one, processes=1)
    for name in ("loss", "grad_norm", "learning_rate"):
        assert len(curve(two, name)) == 20
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-4), name
    losses = [curve(folder, "validation_loss", "validation.csv") for folder in (two, one)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_two_processes_give_the_curve_of_one_with_lora(tmp_path: Path) -> None:
    """With its single function and recomputation; DDP sums its gradients."""
    lora = {"method": "lora", "lora": {"rank": 4, "dropout": 0.0}, "gradient_checkpointing": True}
    one = project(tmp_path / "one", gradient_accumulation_steps=2, **lora)
    several = project(tmp_path / "several", **lora)
    finish(one, processes=1)
    finish(several)
    for name in ("loss", "grad_norm"):
        assert curve(several, name) == pytest.approx(curve(one, name), abs=1e-4), name
    assert curve(several, "loss")[-1] < curve(several, "loss")[0]


def test_only_the_first_process_writes_and_tracks(two: Path) -> None:
    tracked = run_of(two, "train")
    assert tracked.data.metrics["steps"] == 20
    (checkpoints,) = (two / ".checkpoints").iterdir()
    assert not list(checkpoints.glob("partial"))
    newest = max(checkpoints.glob("step-*"))
    states = [state["torch"] for state in torch.load(newest / "random.pt", weights_only=True)]
    assert len(states) == 2
    assert not torch.equal(*states), "both processes would drop out the same channels"


def stopped(folder: Path, stop: Callable[[subprocess.Popen[str]], None]) -> str:
    """The output of two processes that get `stop` after their fifth step; there must be no part of a result."""
    process = start_stage(project(folder), 2)
    wait_for(folder, "*/step-00000005")
    stop(process)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    assert not (folder / "models/tuned").exists()
    return output


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_stop_reaches_all_processes_at_the_same_step(two: Path, tmp_path: Path, first: bool) -> None:
    """A signal to either process saves the step in both; resuming gives the same bytes."""
    folder = tmp_path / "stopped"
    output = stopped(folder, lambda launcher: workers(launcher)[0 if first else 1].terminate())
    assert "stopped after step" in output
    assert "resuming from step-" in finish(folder)
    assert folder_bytes(folder / "models/tuned") == folder_bytes(two / "models/tuned")
    assert curve(folder, "loss") == curve(two, "loss")


@pytest.mark.slow
def test_ctrl_c_at_the_launcher_saves_the_step(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    assert "stopped after step" in stopped(folder, lambda launcher: launcher.send_signal(signal.SIGINT))
    assert "resuming from step-" in finish(folder)
    assert curve(folder, "loss") == curve(two, "loss")


TORCHRUN = "torchrun --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0"


@pytest.mark.slow
def test_the_stage_becomes_its_launcher(two: Path, tmp_path: Path) -> None:
    """`train.launcher` starts two processes, once; the stage's own process becomes the launcher, with its signals."""
    folder = project(tmp_path / "launched", launcher=TORCHRUN)
    process = start_stage(folder)
    wait_for(folder, "*/step-00000005")
    assert "torch.distributed.run" in psutil.Process(process.pid).cmdline()
    assert [worker.environ()["RANK"] for worker in workers(process)] == ["0", "1"]
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "stopped after step" in output
    assert "resuming from step-" in finish(folder, processes=1)
    weights = "models/tuned/model.safetensors"
    assert (folder / weights).read_bytes() == (two / weights).read_bytes()


@pytest.mark.slow
def test_the_stage_becomes_accelerate(tmp_path: Path) -> None:
    folder = project(tmp_path / "accelerated", launcher="accelerate launch --num_processes 1")
    finish(folder, processes=1)
    assert (folder / "models/tuned/model.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    started: list[psutil.Process] = []

    def kill(launcher: subprocess.Popen[str]) -> None:
        started.extend(workers(launcher))
        started[1].kill()

    stopped(folder, kill)
    assert len(started) == 2 and not any(worker.is_running() for worker in started)
    finish(folder)
    assert folder_bytes(folder / "models/tuned") == folder_bytes(two / "models/tuned")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "dtype": "bfloat16"},
        {"method": "ptuning", "dtype": "bfloat16"},
        {"method": "qlora", "dtype": "bfloat16"},
        {"optimizer": "muon", "dtype": "bfloat16", "gradient_checkpointing": True},
        {"optimizer": "adafactor", "dtype": "bfloat16", "gradient_accumulation_steps": 2},
    ],
)
def test_every_method_and_optimizer_trains_in_two_processes(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = project(tmp_path / "run", max_steps=10, learning_rate=1e-2, **changes)
    finish(folder)
    validation = curve(folder, "validation_loss", "validation.csv")
    assert validation[-1] < validation[0]


def test_low_memory_is_refused(tmp_path: Path) -> None:
    folder = project(tmp_path / "low", memory="low", optimizer="adafactor", max_grad_norm=None)
    process = start_stage(folder, 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "train.memory is low, but 2 processes were started" in output


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_with_the_rows(tmp_path: Path) -> None:
    folder = project(tmp_path / "nan", learning_rate=1e6, weight_decay=1e6, max_grad_norm=None, warmup_fraction=0.0)
    process = start_stage(folder, 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "nothing was updated" in " ".join(output.split())


def test_processes_share_the_batches_of_one(rows) -> None:
    def batches(rank: int, world: int, total: int) -> list:
        sampler = TokenBudgetBatches(rows.lengths, batch_tokens=192, total=total, seed=0, rank=rank, world=world)
        return list(sampler)

    alone = batches(0, 1, 12)
    first, second = (batches(rank, 2, 6) for rank in (0, 1))
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone


def test_every_process_has_as_many_validation_batches_and_each_row_counts_once(held_out) -> None:
    world = 3
    loaders = [list(validation_batches(held_out, batch_tokens=64, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in loaders}) == 1
    counted = [
        row
        for batches in loaders
        for batch in batches
        for row, labels in zip(batch["rows"].tolist(), batch["labels"], strict=True)
        if (labels != IGNORED).any()
    ]
    assert sorted(counted) == list(range(len(held_out)))
