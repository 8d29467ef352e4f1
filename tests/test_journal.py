"""Values of a stopped run are found again; halves and those of another run are not."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from glm2core.evaluation.run import journal_of
from glm2core.journal import Journal

VALUES: list[dict[str, Any]] = [{"text": "答", "loss": 0.1 + 0.2, "right": True}, {"text": "\ud800", "loss": 1e-300}]


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def never() -> list[Any]:
    raise AssertionError("this value is there")


def open_journal(file: Path, **made_with: Any) -> Journal:
    def failed(error: OSError) -> None:
        raise error

    return Journal(file, made_with, failed)


def test_a_value_is_computed_once_whoever_asks(tmp_path: Path) -> None:
    said: list[str] = []
    assert journal_of({"model": 1}, said.append).memo(["lines", 1], lambda: VALUES) == VALUES
    assert said == []
    again = journal_of({"model": 1}, said.append)
    assert again.memo(["lines", 1], never) == VALUES
    assert "parts already done: 1" in said[0]
    assert again.memo(["lines", 2], list) == []
    again.remove()
    assert list((tmp_path / ".checkpoints").iterdir()) == []
    again.remove()


def test_another_evaluation_has_its_own(tmp_path: Path) -> None:
    journal_of({"model": 1}).memo("a", lambda: VALUES)
    assert journal_of({"model": 2}).memo("a", list) == []
    assert len(list((tmp_path / ".checkpoints").iterdir())) == 2


@pytest.mark.parametrize("kept", range(0, 200, 23))
def test_a_line_cut_short_is_made_again_and_spoils_no_other(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "journal"
    first = open_journal(file, seed=1)
    first.memo("a", lambda: VALUES)
    whole = file.stat().st_size
    first.memo("b", lambda: VALUES)
    file.write_bytes(file.read_bytes()[: min(whole + kept, file.stat().st_size - 1)])
    again = open_journal(file, seed=1)
    assert again.memo("a", never) == VALUES
    assert again.memo("b", list) == []
    third = open_journal(file, seed=1)
    assert third.memo("a", never) == VALUES
    assert third.memo("b", never) == []


def test_values_by_their_own_keys_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "journal"
    journal = open_journal(file, seed=1)
    assert not file.exists()
    journal.add({7: VALUES[0], 3: VALUES[1]})
    journal.add({7: "not this one"})
    again = open_journal(file, seed=1)
    assert again.values == {7: VALUES[0], 3: VALUES[1]} == journal.values
    assert again.differences is None
    assert json.loads(file.read_bytes().splitlines()[0]) == {"seed": 1}


@pytest.mark.parametrize(
    ("other", "names"), [({"seed": 2, "model": "m"}, ["seed"]), ({"seed": 1, "model": "m", "more": 3}, [])]
)
def test_a_run_of_another_making_is_told(tmp_path: Path, other: dict[str, Any], names: list[str]) -> None:
    file = tmp_path / "journal"
    open_journal(file, **other).add({1: "a"})
    assert open_journal(file, seed=1, model="m").differences == names


def test_a_folder_that_cannot_be_written_is_told_by_the_first_add(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file in the way")
    with pytest.raises(OSError, match="folder"):
        open_journal(tmp_path / "folder" / "journal", seed=1).add({})


def test_where_nothing_can_be_written_an_evaluation_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".checkpoints").write_text("a file in the way")
    said: list[str] = []
    journal = journal_of({}, said.append)
    assert journal.memo("a", lambda: VALUES) == VALUES
    assert journal.memo("b", lambda: VALUES) == VALUES
    assert journal.memo("a", never) == VALUES
    assert len(said) == 1 and "can't be resumed" in said[0]


def test_values_lie_in_the_file_and_not_in_memory(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal", seed=1)
    tracemalloc.start()
    for number in range(200):
        journal.add({number: "x" * (1 << 16)})
    held, _ = tracemalloc.get_traced_memory()
    again = open_journal(tmp_path / "journal", seed=1)
    held_again = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    assert held < 1 << 20 and held_again < 1 << 20  # of 12 MiB
    assert list(again.values) == list(range(200)) and again.values[199] == "x" * (1 << 16)
