"""What tests of different parts share: a clean environment and a small project of one's own."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from glm2core.process import prepare_process
from tests.workspace import Workspace, new_workspace

ROOT = Path(__file__).resolve().parents[1]
prepare_process()  # before a test module loads torch, as the stages and the command line do


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of fuzzers and kills; another one, other inputs and moments")
    parser.addoption("--kills", type=int, default=20, help="of each command in tests/faults (20)")


@pytest.fixture(autouse=True)
def _no_leftover_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not write to the store of the person, or of the DVC run, that started it."""
    ours = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI")
    for name in (*ours, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLM2CORE_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Of what is drawn at random: --seed, 0 where it is not given."""
    given: int = pytestconfig.getoption("--seed")
    return given


@pytest.fixture
def git() -> Callable[..., str]:
    """Run git in a folder as somebody with a name."""

    def run(folder: Path, *arguments: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: Callable[..., str]) -> Path:
    """A committed project folder with this project's params.yaml and dvc.yaml, made the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def reproduced_project(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small project after `dvc repro`, its lock committed, and its MLflow store. To change it, take a copy."""
    workspace = new_workspace(tmp_path_factory.mktemp("reproduced") / "project")
    workspace.must("dvc", "repro")
    workspace.must("git", "commit", "-qam", "reproduced")
    return workspace
