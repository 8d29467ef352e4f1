"""scripts/setup.py: a set-up that failed or was stopped is not taken for a finished one; none spoils another's."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and locks that no index holds."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.py", "installer.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    (tmp_path / "requirements.lock").write_text("torch==0.0.0\n")
    (tmp_path / "requirements-dev.lock").write_text("pytest==0.0.0\n")
    return tmp_path


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/setup.py", *arguments]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, such as these tests may be, ignores Ctrl-C, and its children would as well
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stamp(project: Path) -> Path:
    return project / ".venv/.ready"


def finish(project: Path, lock: str) -> None:
    """Stamp a lock's packages as installed."""
    code = (
        "import runpy, sys; sys.path.insert(0, 'scripts'); s = runpy.run_path('scripts/setup.py'); "
        f"lock = s['ROOT'] / {lock!r}; s['STAMPS'][lock].write_text(s['_wanted'](lock) + 'torch of the index\\n')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)


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
    assert (process.returncode, "interrupted" in err) == (130, True), err
    assert not stamp(project).exists()


def test_a_finished_set_up_is_left_alone_until_the_lock_changes(project: Path) -> None:
    start(project).communicate(timeout=120)  # leaves an environment without its packages
    finish(project, "requirements.lock")
    process = start(project)
    assert process.communicate(timeout=120) == ("", "") and process.returncode == 0
    (project / "requirements.lock").write_text("torch==0.0.1\n")
    process = start(project)
    assert "installing the packages" in process.communicate(timeout=120)[0]
    assert process.returncode == 1 and not stamp(project).exists()


def test_what_tests_need_comes_on_top(project: Path) -> None:
    start(project).communicate(timeout=120)
    finish(project, "requirements.lock")
    kept = project / ".venv/kept"
    kept.touch()
    process = start(project, "dev")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and out.count("installing") == 1 and "requirements-dev.lock" in out
    assert kept.exists() and stamp(project).exists() and not (project / ".venv/.ready-dev").exists()
    finish(project, "requirements-dev.lock")
    assert start(project, "dev").communicate(timeout=120) == ("", "")
    (project / "requirements.lock").write_text("torch==0.0.1\n")  # then both are made anew
    start(project, "dev").communicate(timeout=120)
    assert not kept.exists()


@pytest.mark.parametrize("arguments", [[], ["dev"]])
def test_a_link_to_another_environment_is_not_emptied(project: Path, tmp_path: Path, arguments: list[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (project / ".venv").symlink_to(elsewhere)
    process = start(project, *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and f"is a link to {elsewhere}" in err and "Traceback" not in err
    assert (elsewhere / "precious").exists()


def test_a_file_in_its_place(project: Path) -> None:
    (project / ".venv").write_text("mine")
    process = start(project)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "is a file" in err and (project / ".venv").read_text() == "mine"


def test_of_two_at_once_the_second_waits_and_a_dead_ones_lock_is_nobodys(project: Path) -> None:
    holder = "import fcntl, time; f = open('.venv.lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{holder}; time.sleep(600)"], cwd=project, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second = start(project)
    assert second.stdout is not None
    assert "waiting for it" in second.stdout.readline()
    time.sleep(0.3)
    assert second.poll() is None and not (project / ".venv").exists()
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=120)
    assert "installing" in out and "failed" in err


def test_each_lock_has_what_its_part_of_the_project_needs() -> None:
    script = runpy.run_path(str(ROOT / "scripts/lock.py"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    run = set(script["_needed"](project["dependencies"]))
    dev = set(script["_needed"](script["_extra"](project, "dev")))
    locked = [
        {canonicalize_name(line.split("==")[0]) for line in (ROOT / name).read_text().splitlines() if "==" in line}
        for name in ("requirements.lock", "requirements-dev.lock")
    ]
    assert locked == [run, dev - run]
