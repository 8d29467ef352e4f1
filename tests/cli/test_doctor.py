"""`python -m glm2core doctor`: the machine, what params need, and what will fail."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from glm2core.cli.doctor import project_problems
from glm2core.cli.main import main
from glm2core.params import PARAMS_FILE


@pytest.fixture
def settled(project: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing is wrong, and git reads no other configuration."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    git(project, "config", "user.name", "ann")
    git(project, "config", "user.email", "ann@example.org")
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("base: models/base", "base: null"), encoding="utf-8")
    return project


def test_the_machine_and_what_params_need(settled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(project_problems()) == []
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s in fp32" in out and "needed at once" in out and "torch 2" in out
    assert "nothing here is known to fail" in out


def test_no_cell_is_cut_at_80_columns(
    settled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["memory"]) == 0
    out = capsys.readouterr().out
    assert "train.learning_rate" in out and "…" not in out


def test_a_missing_identity_is_told(settled: Path, git: Callable[..., str]) -> None:
    git(settled, "config", "--unset", "user.email")
    (problem,) = project_problems()
    assert problem.startswith("git has no user.email")


def test_wrong_params_are_told_and_the_machine_is_shown(settled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PARAMS_FILE.write_text(PARAMS_FILE.read_text().replace("method: full", "method: loraa"), encoding="utf-8")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "this machine" in out and "! params: " in out and "train.method" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write all files")
def test_a_store_that_can_not_be_written(settled: Path) -> None:
    (settled / "mlflow.db").touch(mode=0o400)
    assert any("can't be written by this user" in problem for problem in project_problems())
