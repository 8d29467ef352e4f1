"""Parts of a stopped evaluation are found again; halves and those of another evaluation are not."""

from pathlib import Path

import pytest

from glm2core.evaluation.finished import FinishedParts, Record

RECORDS: list[Record] = [{"text": "答", "loss": 0.1 + 0.2, "right": True}, {"text": "", "loss": 1e-300, "right": False}]


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def never() -> list[Record]:
    raise AssertionError("this part is there")


def test_a_part_is_made_once_whoever_asks(tmp_path: Path) -> None:
    said: list[str] = []
    assert FinishedParts({"model": 1}, said.append).part(["lines", 1], lambda: RECORDS) == RECORDS
    assert said == []
    again = FinishedParts({"model": 1}, said.append)
    assert again.part(["lines", 1], never) == RECORDS
    assert "parts done before: 1" in said[0]
    assert again.part(["lines", 2], list) == []
    again.remove()
    assert list((tmp_path / ".checkpoints").iterdir()) == []
    again.remove()


def test_another_evaluation_has_its_own(tmp_path: Path) -> None:
    FinishedParts({"model": 1}).part("a", lambda: RECORDS)
    assert FinishedParts({"model": 2}).part("a", list) == []
    assert len(list((tmp_path / ".checkpoints").iterdir())) == 2


@pytest.mark.parametrize("kept", range(0, 200, 23))
def test_a_line_cut_short_is_made_again_and_spoils_no_other(tmp_path: Path, kept: int) -> None:
    first = FinishedParts({})
    first.part("a", lambda: RECORDS)
    (file,) = (tmp_path / ".checkpoints").iterdir()
    whole = file.stat().st_size
    first.part("b", lambda: RECORDS)
    file.write_bytes(file.read_bytes()[: min(whole + kept, file.stat().st_size - 2)])
    again = FinishedParts({})
    assert again.part("a", never) == RECORDS
    assert again.part("b", list) == []
    third = FinishedParts({})
    assert third.part("a", never) == RECORDS
    assert third.part("b", never) == []


def test_where_nothing_can_be_written_the_evaluation_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".checkpoints").write_text("a file in the way")
    said: list[str] = []
    parts = FinishedParts({}, said.append)
    assert parts.part("a", lambda: RECORDS) == RECORDS
    assert parts.part("b", lambda: RECORDS) == RECORDS
    assert parts.part("a", never) == RECORDS
    assert len(said) == 1 and "can't be continued" in said[0]
