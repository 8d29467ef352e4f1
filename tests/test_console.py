"""What a log gets to see of long work."""

import time

import pytest

from glm2core import console


def test_a_log_is_told_how_far_the_work_is(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("reading", 2000, seconds_between_lines=0.05) as (bar, task):
        bar.update(task, completed=1500, description="reading long ones")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert "reading long ones: 1,500 of 2,000, 0 s" in lines
    assert "1500/2000" in lines[-1]
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_short_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("reading", None) as (bar, task):
        bar.advance(task, 3)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_path_in_a_log_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a/" * 60
    console.closing_table("end", {"rows": 1}, {"see": long})
    assert f"  see: {long}" in capsys.readouterr().out.splitlines()
