"""What a log gets to see of long work."""

import time

import pytest

from glm2core import console


def test_a_log_is_told_how_far_the_work_is(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("reading", 2000, seconds_between_lines=0.05) as (bar, task):
        bar.update(task, completed=1500, description="reading long ones")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert "reading long ones: 1,500 of 2,000, 0 s, about 0 s left" in lines
    assert "1500/2000" in lines[-1]
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "about 1 s on this machine"),
        (61, "about 61 s on this machine"),
        (359, "about 6 min on this machine"),
        (1799, "about 30 min on this machine"),
        (1801, "about 30 min on this machine; what shortens it: less"),
        (7800, "about 2 h 10 min on this machine; what shortens it: less"),
        (4.2 * 86400, "about 4.2 days on this machine; what shortens it: less"),
    ],
)
def test_the_time_left_is_rounded_and_a_long_one_comes_with_advice(seconds: float, told: str) -> None:
    assert console.time_left(seconds, shortened_by="less") == told


def test_short_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("reading", None) as (bar, task):
        bar.advance(task, 3)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_path_in_a_log_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a/" * 60
    console.closing_table("end", {"rows": 1}, {"see": long})
    assert f"  see: {long}" in capsys.readouterr().out.splitlines()


def test_a_lines_cells_are_on_one_line_whatever_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["a source with [brackets] " * 3, *(f"{n}.0 (0-100) -> {n}.1 (2-99)" for n in range(4))]
    console.print_table("figures", ["source", *"abcd"], [cells])
    lines = capsys.readouterr().out.splitlines()
    assert any(all(cell.strip() in line for cell in cells) for line in lines)
    console.print_table("figures", [], [])
    assert capsys.readouterr().out == ""
