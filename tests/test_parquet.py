"""A file between two stages that is cut or has a flipped bit: the stage that reads it says so, whatever is hit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glm2core.data.converted import count_rows, read_conversations
from glm2core.errors import UserError
from glm2core.evaluation.rows import read_rows
from glm2core.text.dataset import TokenizedDataset
from stages.convert import convert
from stages.tokenize import tokenize
from tests.stages.data_project import ROWS, run_in, write_project

Harm = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_project(folder, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        assert run_in(folder, "convert", convert) == run_in(folder, "tokenize", tokenize) == 0
    return folder


def converted(path: Path) -> object:
    count_rows(path)
    return list(read_conversations(path))


def tokenized(path: Path) -> object:
    data = TokenizedDataset.load(path)
    return data.ids, data.sources, [[part.tolist() for part in data.row(index)] for index in range(len(data))]


def held_out(path: Path) -> object:
    return read_rows(path, [row["id"] for row in read_conversations(path)]).rows()


READERS = {"data/converted/train.parquet": converted, "data/tokenized/train.parquet": tokenized}


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


@pytest.mark.parametrize("harm", [cut, flip])
@pytest.mark.parametrize("name", list(READERS))
def test_damage_is_a_sentence_and_never_other_rows(
    made: Path, tmp_path: Path, name: str, harm: Harm, seed: int
) -> None:
    read, whole = READERS[name], (made / name).read_bytes()
    rows, file = read(made / name), tmp_path / "damaged.parquet"
    draw, told = random.Random(seed), 0
    for _ in range(200):
        file.write_bytes(harm(whole, draw))
        try:
            found = read(file)
        except UserError as error:
            assert "damaged.parquet" in str(error) and "dvc repro" in str(error)
            told += 1
        else:
            assert found == rows, "read as something else"  # what was hit says nothing about the rows
    assert told == 200 if harm is cut else told > 100


def test_held_out_rows_too(made: Path, tmp_path: Path) -> None:
    """polars reads these, and knows no checksums."""
    shutil.copy(made / "data/converted/train.parquet", tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    assert held_out(tmp_path / "rows.parquet")
    ids = [row["id"] for row in read_conversations(tmp_path / "rows.parquet")]
    (tmp_path / "rows.parquet").write_bytes(flip(whole[: len(whole) // 2], random.Random(0)) + whole[len(whole) // 2 :])
    with pytest.raises(UserError, match=r"rows\.parquet is a damaged or cut-off parquet file .* dvc repro convert"):
        read_rows(tmp_path / "rows.parquet", ids)


@pytest.mark.parametrize(
    ("name", "stage"), [("data/converted/validation.parquet", tokenize), ("data/converted/train.parquet", tokenize)]
)
def test_a_stage_says_it(
    made: Path,
    tmp_path: Path,
    name: str,
    stage: Callable,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    assert run_in(folder, "tokenize", stage) == 1
    said = capsys.readouterr().err
    assert f"tokenize: {name} is a damaged or cut-off parquet file" in said and "Traceback" not in said
