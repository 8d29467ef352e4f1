"""Tokenized rows as they are shown: every token, labels, what was cut, and nothing that a page would obey."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from glm2core.conversation import SPLITS
from glm2core.data.convert import convert_sources
from glm2core.labels import IGNORED
from glm2core.params import ConvertParams, Source, TokenizeParams
from glm2core.text.encode import encode_converted
from glm2core.text.pairs import PairBuilder
from glm2core.text.rows_page import MOST_BYTES, ROWS_PAGE, write_rows_page
from glm2core.text.shown_rows import MOST_TOKENS, STRETCHED, ShownRow, example_rows, shown_row
from glm2core.text.tokenizer import SpTokenizer
from tests.data.raw_files import write

HOSTILE = "<script>document.title='run'</script>\"'&<b>\u202egnol\u2066x\u0007\x1b[31m\u200f</pre>"
TEXT = "The soprano sings and sings. " * 30
ROWS = [
    {"instruction": HOSTILE, "output": HOSTILE},
    {"instruction": "What is it about?", "input": TEXT, "output": "A soprano."},
    {"instruction": "And now?", "output": "Yes.", "history": [[f"Tea {n}? " * 4, f"No {n}."] for n in range(9)]},
    {"instruction": "Tell it.", "output": "so " * 80},
    *({"instruction": f"{n} + {n}", "output": f"{2 * n}"} for n in range(6)),
]
CUTS = {"texts cut in the middle", "prompts without oldest rounds", "rounds dropped", "responses cut"}


@pytest.fixture(params=["rounds", "left", "right"])
def shown(tmp_path: Path, tokenizer: SpTokenizer, request: pytest.FixtureRequest) -> list[ShownRow]:
    return made_rows(tmp_path, tokenizer, request.param)


def made_rows(
    folder: Path, tokenizer: SpTokenizer, truncation: str = "rounds", loss_on: str = "every"
) -> list[ShownRow]:
    files = {"a.json": ROWS, "b.json": [{"instruction": "x", "output": "y"}]}
    written = [write(folder / name, json.dumps(rows).encode()) for name, rows in files.items()]
    sources = [Source(path=str(file)) for file in written]
    convert_sources(ConvertParams(sources=sources, validation_fraction=0.1, test_fraction=0.0), folder / "converted")
    params = TokenizeParams(max_source_length=90, max_target_length=60, truncation=truncation, loss_on=loss_on)
    encode_converted(folder / "converted", folder / "tokenized", tokenizer, "chatglm2", params)
    builder = PairBuilder(tokenizer, "chatglm2", "glm2", params.truncation)
    return list(example_rows(folder / "converted", folder / "tokenized", tokenizer, builder))


def test_the_tokens_of_a_row_are_all_there_in_order(tmp_path: Path, tokenizer: SpTokenizer) -> None:
    for row in made_rows(tmp_path, tokenizer):
        stored = pq.read_table(tmp_path / f"tokenized/{row.place}.parquet").to_pylist()[row.number]
        tokens = [token for line in row.lines for token in line.tokens if not token.cut]
        assert [token.id for token in tokens] == stored["input_ids"]
        assert [bool(token.label) for token in tokens] == [label != IGNORED for label in stored["labels"]]
        others = [
            (t.label, label) for t, label in zip(tokens, stored["labels"], strict=True) if t.label not in ("", "=")
        ]
        assert all(text == "</s>" and label == 2 for text, label in others)
        starts = [line.position for line in row.lines]
        assert starts == [place for place in stored["segments"] if place < len(tokens)]
        assert all(a.stretched < b.stretched < STRETCHED for a, b in zip(row.lines, row.lines[1:], strict=False))


def test_each_source_and_each_kind_of_cut_is_there(tmp_path: Path, tokenizer: SpTokenizer) -> None:
    rows = made_rows(tmp_path, tokenizer)
    assert {Path(row.source).name for row in rows} == {"a.json", "b.json"}
    assert {cut for row in rows for cut in row.cuts} == CUTS
    assert len({row.id for row in rows}) == len(rows)


def test_what_was_cut_stands_where_it_stood(shown: list[ShownRow], tokenizer: SpTokenizer, tmp_path: Path) -> None:
    """With the cut tokens put back a row is the whole row; heads of dropped rounds apart, whose numbers change."""
    whole = {
        row["id"]: row for split in SPLITS for row in pq.read_table(tmp_path / f"converted/{split}.parquet").to_pylist()
    }
    cut_rows = [row for row in shown if row.cuts]
    assert len(cut_rows) >= 3
    for row in cut_rows:
        ids = [token.id for line in row.lines for token in line.tokens]
        read = tokenizer.decode(ids)
        for message in whole[row.id]["messages"]:
            assert message["content"].strip() in read
        assert any(token.cut for line in row.lines for token in line.tokens)
    assert not any(t.cut for row in shown if not row.cuts for line in row.lines for t in line.tokens)


def test_nothing_of_a_text_is_obeyed(tmp_path: Path, tokenizer: SpTokenizer) -> None:
    rows = made_rows(tmp_path, tokenizer)
    write_rows_page(rows, tmp_path / ROWS_PAGE)
    page = (tmp_path / ROWS_PAGE).read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert "&lt;script&gt;" in body
    assert set(re.findall(r"<(/?[a-z0-9]+)", body)) <= {
        f"{slash}{name}" for slash in ("", "/") for name in ("body", "html", "h1", "h2", "p", "pre", "span", "i", "u")
    }
    assert [c for c in page if not c.isprintable() and c != "\n"] == []
    assert "http" not in page.replace("http-equiv", "")


def test_long_rows_and_long_pages_end(tmp_path: Path, tokenizer: SpTokenizer) -> None:
    ids = list(range(3, 300)) * 40
    row = {"id": "x", "source": "a.json", "input_ids": ids, "labels": ids, "segments": [0], "cuts": []}
    long = shown_row("train", 0, row, tokenizer)
    assert sum(len(line.tokens) for line in long.lines) == MOST_TOKENS
    assert (long.left_out, long.length) == (len(ids) - MOST_TOKENS, len(ids))
    write_rows_page([long] * 100, tmp_path / ROWS_PAGE)
    page = (tmp_path / ROWS_PAGE).read_text(encoding="utf-8")
    assert MOST_BYTES / 2 < len(page.encode()) <= MOST_BYTES
    kept = page.count("<pre>")
    assert f"{100 - kept} more rows are left out" in page and page.endswith("</html>\n")
