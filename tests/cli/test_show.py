"""`python -m glm2core show`: a row in a terminal, and a sentence where there is none."""

from pathlib import Path

import pytest

from glm2core.cli.main import main
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer
from tests.text.conftest import TRAINING_TEXTS
from tests.text.test_shown_rows import made_rows


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made_rows(tmp_path, train_tokenizer(TRAINING_TEXTS, 420))
    return tmp_path


def test_a_row_with_its_labels_and_what_was_cut(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "tokenized/train.parquet"
    said = []
    for number in range(5):
        assert main(["show", str(file), "--row", str(number)]) == 0
        said.append(capsys.readouterr().out)
    tokenizer = SpTokenizer.load(project / "tokenized/tokenizer")
    for text in said:
        assert f"[gMASK]:{tokenizer.special_ids['[gMASK]']} sop:{tokenizer.special_ids['sop']}" in text
        assert "«</s>:2»" in text or "responses cut" in text
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    cut = [text for text in said if "; cut: " in text]
    assert cut and all("[-" in text.split("as an example")[1] for text in cut)
    assert any("=></s>»" in text for text in said)  # the end of an earlier answer


@pytest.mark.parametrize(
    ("file", "row", "sentence"),
    [
        ("tokenized/train.parquet", "999", "--row 999 is beyond the end of"),
        ("tokenized/train.parquet", "-1", "--row -1 is beyond the end of"),
        ("converted/train.parquet", "0", "was not written by this version's tokenize stage"),
        ("a.json", "0", "is not a parquet file, so it has no labels"),
        ("none.parquet", "0", "is not a file"),
    ],
)
def test_no_such_row_is_a_sentence(
    project: Path, capsys: pytest.CaptureFixture[str], file: str, row: str, sentence: str
) -> None:
    assert main(["show", str(project / file), "--row", row]) == 1
    assert f"show: {project / file}" in (said := capsys.readouterr().err) or "--row" in said
    assert sentence in said


def test_another_tokenizer_is_a_sentence(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = train_tokenizer(["another text that has other pieces, many of them"] * 3, 300)
    other.save(project / "other", "chatglm2")
    assert (
        main(["show", str(project / "tokenized/train.parquet"), "--row", "0", "--tokenizer", str(project / "other")])
        == 1
    )
    assert "was made with a different tokenizer" in capsys.readouterr().err
