"""Parquet sources: the format's columns only, and rejected rows with all of theirs."""

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm2core.data.convert import convert_sources
from glm2core.data.sources import open_rows
from glm2core.errors import UserError
from glm2core.files import json_line
from glm2core.params import ConvertParams, Source

COUNT = 5000


def table(count: int = COUNT) -> pa.Table:
    """Every seventh row is without an answer; the other columns are of every kind."""
    number = range(count)
    return pa.table(
        {
            "question": [f"question {i}" for i in number],
            "output": [None if i % 7 == 0 else f"answer {i}" for i in number],
            "score": [float("nan") if i % 2 else i / 3 for i in number],
            "tags": [[{"name": "问", "more": [i, None]}] if i % 3 else None for i in number],
            "at": pa.array([i if i % 5 else None for i in number], pa.timestamp("ns")),
            "pairs": pa.array([[("a", i)] for i in number], pa.map_(pa.string(), pa.int32())),
            "kind": pa.array(["x" if i % 4 else None for i in number]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("row_group", [100, COUNT])
def test_rejected_rows_keep_all_columns(tmp_path: Path, row_group: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=row_group)
    source = Source(path=str(path), columns={"instruction": "question"})
    report = convert_sources(ConvertParams(sources=[source], max_rejected_fraction=0.2), tmp_path / "out")
    whole = pq.read_table(path).to_pylist()
    expected = [
        {"source": str(path), "index": index, "reason": "output is null", "row": whole[index]}
        for index in range(0, COUNT, 7)
    ]
    assert report.total.kept == COUNT - len(expected)
    assert (tmp_path / "out/rejected.jsonl").read_bytes() == b"".join(map(json_line, expected))


def test_all_columns_read_as_pyarrow_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3000), path, row_group_size=700)
    records = list(open_rows(path))
    assert [record.number for record in records] == list(range(3000))
    assert repr([record.value for record in records]) == repr(pq.read_table(path).to_pylist())  # NaN is no NaN


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    """Bytes of another column are damaged: only who reads that column meets it."""
    path = tmp_path / "a.parquet"
    pq.write_table(table(50).append_column("noise", [[os.urandom(99) for _ in range(50)]]), path, compression="zstd")
    group = pq.read_metadata(path).row_group(0)
    noise = group.column(group.num_columns - 1)
    content = bytearray(path.read_bytes())
    start = noise.dictionary_page_offset or noise.data_page_offset
    content[start : start + noise.total_compressed_size] = bytes(noise.total_compressed_size)
    path.write_bytes(content)
    rows = open_rows(path)
    chosen = [record.value for record in replace(rows, columns=frozenset({"output", "question", "none"}))]
    assert chosen[8] == {"question": "question 8", "output": "answer 8"}
    with pytest.raises(UserError, match="damaged parquet file"):
        list(rows)


@pytest.mark.parametrize("name", ["*.parquet", "a[1].parquet", "key=value/a.parquet"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), path)
    pq.write_table(pa.table({"x": [2]}), tmp_path / "b.parquet")
    assert [record.value for record in open_rows(path)] == [{"x": 1}]
