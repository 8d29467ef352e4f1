"""docs/one-row.md: its code runs as it stands and prints what stands below it, and the pipeline makes that row."""

import re
import runpy
from pathlib import Path

import pytest

from glm2core.data.convert import convert_sources
from glm2core.data.converted import read_conversations
from glm2core.params import load_params, read_base, settle
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.encode import encode_converted
from glm2core.text.tokenizer import SpTokenizer
from tests.workspace import ROOT

PAGE = (ROOT / "docs" / "one-row.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
BORDER = "=" * 20
ROUNDING = 0.02  # of losses, which have two digits


def words(text: str) -> list[str | float]:
    """Words and numbers apart, to compare numbers as such."""
    found = re.findall(r"\d[\d,]*\.?\d*(?![\w])|\w+|[^\w\s]", text)
    return [float(word.replace(",", "")) if re.fullmatch(r"[\d,]+\.\d+", word) else word for word in found]


def test_the_page_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BLOCKS) == PAGE.count("```python") > 7
    script = tmp_path / "page.py"
    script.write_text("".join(f"{code}\nprint({BORDER!r})\n" for code, _ in BLOCKS), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    *printed, rest = capsys.readouterr().out.split(f"{BORDER}\n")
    assert rest == ""
    for found, (_, expected) in zip(printed, BLOCKS, strict=True):
        pairs = list(zip(words(found), words(expected), strict=True))
        assert all(a == (pytest.approx(b, abs=ROUNDING) if isinstance(b, float) else b) for a, b in pairs), found


def test_the_pipeline_makes_the_row_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params()
    settled = settle(params, read_base(params.model.base, params.model.preset), "cpu")
    assert (settled.train.position_stretch, settled.train.seed, settled.train.generated_rows) == (True, 0, 1)
    assert (settled.model.rope.type, settled.model.rope.factor, settled.model.rope.unit) == ("yarn", 16, 2048)
    assert settled.train.batch_tokens == 1024
    files = [source for source in params.convert.sources if not source.is_generated]
    assert params.convert.sources[: len(files)] == files, "generated rows come behind, and change no row's number"

    convert_sources(params.convert.model_copy(update={"sources": files}), tmp_path / "converted")
    tokenizer = SpTokenizer.load(ROOT / "models" / "base")
    encode_converted(tmp_path / "converted", tmp_path / "tokenized", tokenizer, "chatglm2", settled.tokenize)
    rows = TokenizedDataset.load(tmp_path / "tokenized" / "train.parquet")
    (id_,) = re.findall(r"^id: (\w+)", PAGE, re.MULTILINE)
    (number,) = map(int, re.findall(r"^number = (\d+)", PAGE, re.MULTILINE))
    assert rows.ids.index(id_) == number
    converted = list(read_conversations(tmp_path / "converted" / "train.parquet"))[number]
    assert converted["id"] == id_
    assert converted["source"] == rows.sources[number] == "data/raw/analysis_texts.jsonl"
    assert all(str(message) in PAGE for message in converted["messages"])

    ids, labels, segments = rows.row(number)
    assert " ".join(map(str, [*ids, len(ids), "ids, read:"])) in " ".join(PAGE.split())
    assert f"ids, read: {(labels == -100).sum()} supervised: {(labels != -100).sum()}" in PAGE
    printed = BLOCKS[4][1].splitlines()
    assert [int(line.split()[0]) for line in printed] == segments.tolist()
