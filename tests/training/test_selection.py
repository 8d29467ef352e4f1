"""The choice of training rows and of the number of steps."""

from pathlib import Path

import numpy as np
import pytest

from glm2core.errors import UserError
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.selection import with_steps, without_generated
from tests.training.conftest import train_params, write_rows

GENERATED = ["convert.sources[6]", "convert.sources[12]", "analysis"]
# Names of files, however they look.
FILES = ["data/raw/a.json", "convert.sources", "data/convert.sources[6]", "convert.sources[6].json", "data/analysis"]


@pytest.fixture
def rows(tmp_path: Path) -> TokenizedDataset:
    write_rows(tmp_path / "train.parquet", "", 60, sources=[(FILES + GENERATED)[index % 8] for index in range(60)])
    return TokenizedDataset.load(tmp_path / "train.parquet")


def test_generated_rows_are_left_out_and_the_others_are_as_they_were(rows: TokenizedDataset) -> None:
    told: list[str] = []
    kept = without_generated(rows, 0.0, told.append)
    wanted = [index for index in range(60) if index % 8 < 5]
    assert kept.ids == [f"row{index}" for index in wanted]
    assert set(kept.sources) == set(FILES)
    for place, index in enumerate(wanted):
        assert all(np.array_equal(a, b) for a, b in zip(kept.row(place), rows.row(index), strict=True))
    assert kept.lengths.tolist() == rows.lengths[wanted].tolist()
    assert kept.supervised_tokens < rows.supervised_tokens
    assert kept.info == rows.info
    assert told == ["train.generated_rows 0: 21 of 60 training rows are left out"]


def test_a_share_is_always_of_the_same_rows(rows: TokenizedDataset) -> None:
    shares = [set(without_generated(rows, share).ids) for share in (0.0, 0.3, 0.7)]
    assert shares[0] < shares[1] < shares[2] < set(rows.ids)
    assert set(without_generated(rows, 0.3).ids) == shares[1]
    assert without_generated(rows, 1.0) is rows


def test_nothing_left_is_a_sentence(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.parquet", "", 60, sources=GENERATED * 30)
    with pytest.raises(UserError, match="all 60 training rows are generated,"):
        without_generated(TokenizedDataset.load(tmp_path / "train.parquet"), 0.0)


def test_epochs_become_steps(rows: TokenizedDataset) -> None:
    def steps(processes: int = 1, **changes: object) -> int:
        params = train_params(**{"max_steps": None, "epochs": 1.0, **changes})
        return with_steps(params, rows, processes, lambda sentence: None).steps

    one = steps()
    assert 60 * 10 / 192 < one < 60
    assert abs(steps(epochs=2.0) - 2 * one) <= 1
    assert steps(gradient_accumulation_steps=2) == steps(processes=2) == -(-one // 2)
    assert steps(epochs=0.001) == 1
    assert with_steps(train_params(max_steps=7), rows, 1).steps == 7


def test_an_epoch_of_weighted_rows_takes_as_many_steps_as_its_rows(rows: TokenizedDataset) -> None:
    params = train_params(max_steps=None, epochs=1.0)
    one = with_steps(params, rows, 1, lambda sentence: None).steps
    rows.weights[:] = 3
    assert abs(with_steps(params, rows, 1, lambda sentence: None).steps - 3 * one) <= 2
