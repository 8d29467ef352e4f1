"""Rows in front of convert: what is told beforehand is what it reads, and a guess is never made."""

import gzip
import json
from pathlib import Path

import polars
import pytest

from glm2core.data.ahead import rows_ahead
from glm2core.data.convert import convert_sources
from glm2core.params import ConvertParams, GeneratedAnalysis, GeneratedLines, Source

ROWS = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(40)]


def params(*sources: Source) -> ConvertParams:
    return ConvertParams(sources=list(sources))


def test_the_count_is_what_convert_reads(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl").write_text(lines.replace("q", "r"))
    (tmp_path / "parts").mkdir()
    for number in range(3):
        table = polars.DataFrame([{"instruction": f"p{number} {n}", "output": "x"} for n in range(5)])
        table.write_parquet(tmp_path / f"parts/part-{number}.parquet")
    sources = [
        Source(path=str(tmp_path / "*.jsonl")),
        Source(path=str(tmp_path / "parts")),
        Source(format="lines", generate=GeneratedLines(conversations=7, lines=[2], questions=1)),
        Source(format="analysis", analysis=GeneratedAnalysis(rows=9, held_out_rows=4)),
    ]
    read = convert_sources(params(*sources), tmp_path / "out").total.read
    assert rows_ahead(params(*sources)) == read == 80 + 15 + 7 + 13


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "none.jsonl"])
def test_what_only_reading_could_tell_is_not_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert rows_ahead(params(Source(path=str(tmp_path / name)))) is None
