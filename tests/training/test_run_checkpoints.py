"""Checkpoints: atomic, verified, locked, only the newest few kept."""

from pathlib import Path

import pytest

from glm2core.errors import UserError
from glm2core.training.checkpoints import CheckpointFolder


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> CheckpointFolder:
    checkpoints = CheckpointFolder(tmp_path / "run", keep=2, notice=said.append)
    checkpoints.folder.mkdir()
    return checkpoints


def write(text: str):
    return lambda place: (place / "weights").write_text(text)


def test_the_newest_few_and_the_best_are_kept(folder: CheckpointFolder) -> None:
    for step in (1, 2, 3, 4, 5):
        assert folder.save(step, write(str(step)), best_step=2)
    assert sorted(p.name for p in folder.folder.glob("step-*")) == ["step-00000002", "step-00000004", "step-00000005"]
    newest = folder.newest()
    assert newest is not None
    assert (newest / "weights").read_text() == "5"


@pytest.mark.parametrize("damage", ["changed", "short", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(folder: CheckpointFolder, said: list[str], damage: str) -> None:
    folder.save(1, write("one"))
    folder.save(2, write("two"))
    newest = folder.path(2)
    match damage:
        case "changed":
            (newest / "weights").write_text("twe")
        case "short":
            (newest / "weights").write_text("")
        case "missing":
            (newest / "weights").unlink()
        case "manifest":
            (newest / "manifest.json").write_text("{")
    assert folder.newest() == folder.path(1)
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0]


def test_a_half_written_checkpoint_is_never_read(folder: CheckpointFolder) -> None:
    folder.save(1, write("one"))
    (folder.folder / "partial").mkdir()
    (folder.folder / "partial" / "weights").write_text("two")
    assert folder.newest() == folder.path(1)
    with folder.locked():
        assert not (folder.folder / "partial").exists()


def test_a_full_disk_is_told_and_the_one_before_remains(folder: CheckpointFolder, said: list[str]) -> None:
    def disk_is_full(place: Path) -> None:
        (place / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    folder.save(1, write("one"))
    assert not folder.save(2, disk_is_full)
    assert folder.newest() == folder.path(1)
    assert "could not save the checkpoint of step 2" in said[0]
    assert "step-00000001" in said[0]
    assert folder.save(3, write("three"))


def test_a_second_trainer_is_refused(folder: CheckpointFolder) -> None:
    other = CheckpointFolder(folder.folder, keep=2, notice=print)
    with folder.locked(), pytest.raises(UserError, match="another process is training this run"), other.locked():
        pass
    with other.locked():
        pass


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoints = CheckpointFolder(tmp_path / "file" / "run", keep=2, notice=print)
    with pytest.raises(UserError, match="cannot write checkpoints"), checkpoints.locked():
        pass


def test_finished_runs_make_room_unfinished_ones_stay(tmp_path: Path) -> None:
    first, second, third = (CheckpointFolder(tmp_path / name, keep=2, notice=print) for name in "abc")
    for checkpoints in (first, second, third):
        with checkpoints.locked():
            checkpoints.save(1, write("one"))
    first.finish()
    third.remove_other_finished()
    assert not first.folder.exists()
    assert second.newest() is not None
