"""The train stage killed, stopped and disturbed, in real processes: no step is lost, no result differs."""

import json
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from glm2core.training.checkpoints import CheckpointFolder
from stages.train import train
from tests.stages.data_project import run_in
from tests.training.conftest import folder_bytes, start_stage, write_params, write_project

STEPS = 60
SLOWER = {"max_steps": STEPS, "save_steps": 5, "eval_steps": 10, "logging_steps": 5}


def finish(folder: Path) -> str:
    process = start_stage(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(folder: Path, pattern: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list((folder / ".checkpoints").glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.01)


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / ".checkpoints").glob("*/step-*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run gives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_project(folder, SLOWER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        assert run_in(folder, "train", train) == 0
    return folder_bytes(folder / "models/tuned")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "disturbed"
    write_project(folder, SLOWER)
    return folder


def test_a_killed_run_goes_on_to_the_same_bytes(folder: Path, undisturbed: dict[str, bytes]) -> None:
    process = start_stage(folder)
    wait_for(folder, "*/step-*")
    time.sleep(random.random())  # any moment: in a step, in a checkpoint, in a validation
    process.kill()
    process.communicate()
    assert not (folder / "models/tuned").exists()
    output = finish(folder)
    assert "resuming from step-" in output
    assert folder_bytes(folder / "models/tuned") == undisturbed


@pytest.mark.slow
def test_twenty_kills_at_random_moments(folder: Path, undisturbed: dict[str, bytes]) -> None:
    """One run, killed again and again; each start goes on from where the last one was saved."""
    write_params(folder, SLOWER)
    moments = random.Random(int(time.time()))
    kills = 0
    while kills < 20:
        process = start_stage(folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3 + moments.random() * 12)
        if process.poll() is not None:  # it came to its end: begin another
            process.communicate()
            assert folder_bytes(folder / "models/tuned") == undisturbed
            shutil.rmtree(folder / ".checkpoints")
            shutil.rmtree(folder / "models")
            continue
        process.kill()
        process.communicate()
        kills += 1
    finish(folder)
    assert folder_bytes(folder / "models/tuned") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_its_step_and_fails(
    folder: Path, undisturbed: dict[str, bytes], number: signal.Signals
) -> None:
    process = start_stage(folder)
    wait_for(folder, "*/step-*")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "finishing the step" in output
    assert "dvc repro resumes" in output
    assert not (folder / "models/tuned").exists()
    finish(folder)
    assert folder_bytes(folder / "models/tuned") == undisturbed


@pytest.mark.slow
def test_a_trainer_beside_another_is_refused(folder: Path) -> None:
    """As when `dvc` was killed and its trainer lives on; this process holds the lock."""
    first = start_stage(folder)
    wait_for(folder, "*/step-*")
    first.kill()
    first.communicate()
    run = checkpoints(folder)[0].parent
    with CheckpointFolder(run, keep=2, notice=print).locked():
        second = start_stage(folder)
        output, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    assert "another process is training this run" in " ".join(output.split())
    finish(folder)


@pytest.mark.slow
def test_a_corrupted_newest_checkpoint_falls_back(folder: Path, undisturbed: dict[str, bytes]) -> None:
    process = start_stage(folder)
    wait_for(folder, "*/step-00000010")
    process.kill()
    process.communicate()
    newest = checkpoints(folder)[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    output = finish(folder)
    assert f"{newest.name} is damaged" in " ".join(output.split())
    assert f"resuming from {checkpoints_before(newest)}" in output
    assert folder_bytes(folder / "models/tuned") == undisturbed


def checkpoints_before(path: Path) -> str:
    step = int(path.name.removeprefix("step-"))
    return f"step-{step - SLOWER['save_steps']:08d}"


@pytest.mark.slow
def test_changed_params_start_afresh(folder: Path, tmp_path: Path) -> None:
    process = start_stage(folder)
    wait_for(folder, "*/step-*")
    process.kill()
    process.communicate()
    changed = {**SLOWER, "learning_rate": 3e-4, "max_steps": 10}
    write_params(folder, changed)
    assert "resuming from" not in finish(folder)
    fresh = tmp_path / "fresh"
    write_project(fresh, changed)
    finish(fresh)
    assert folder_bytes(folder / "models/tuned") == folder_bytes(fresh / "models/tuned")


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(folder: Path, undisturbed: dict[str, bytes]) -> None:
    """A file-size limit stands in for the full disk: the weights fit, the optimizer state doesn't."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_500_000, before[1]))
    try:
        process = start_stage(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "could not save the checkpoint of step 5" in output
    assert folder_bytes(folder / "models/tuned") == undisturbed
    assert json.loads((folder / "metrics/train.json").read_text())["steps"] == STEPS
