"""scripts/setup.py: a set-up that failed or was stopped is never taken for a finished one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and a lock that no index holds."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.py", tmp_path / "scripts/setup.py")
    (tmp_path / "requirements.lock").write_text("torch==0.0.0\n")
    return tmp_path


def start(project: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/setup.py"]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    return subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stamp(project: Path) -> Path:
    return project / ".venv/.ready"


def test_a_failed_set_up_says_so_and_is_tried_again(project: Path) -> None:
    for _ in range(2):
        process = start(project)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "installing the packages" in out and "set-up: failed" in err
        assert not stamp(project).exists()


def test_an_interrupted_set_up_is_no_finished_one(project: Path) -> None:
    process = start(project)
    while not (project / ".venv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in err
    assert not stamp(project).exists()


def test_a_finished_set_up_is_left_alone_until_the_lock_changes(project: Path) -> None:
    start(project).communicate(timeout=120)  # leaves an environment without its packages
    code = "import runpy; print(runpy.run_path('scripts/setup.py')['_wanted'](), end='')"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    stamp(project).write_text(done.stdout)
    process = start(project)
    assert process.communicate(timeout=120) == ("", "") and process.returncode == 0
    (project / "requirements.lock").write_text("torch==0.0.1\n")
    process = start(project)
    assert "installing the packages" in process.communicate(timeout=120)[0]
    assert process.returncode == 1 and not stamp(project).exists()
