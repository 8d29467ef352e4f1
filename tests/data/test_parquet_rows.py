"""Parquet sources: the format's columns only, rejected rows with all of theirs, damaged and hostile files."""

import json
import os
import random
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
    damaged_column(path, "noise")
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


def damaged_column(path: Path, name: str) -> None:
    """Overwrite the pages of one column with zeros."""
    group = pq.read_metadata(path).row_group(0)
    [column] = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == name]
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)


def test_a_rejected_row_is_kept_where_its_other_columns_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(50), path)
    damaged_column(path, "score")
    source = Source(path=str(path), columns={"instruction": "question"})
    report = convert_sources(ConvertParams(sources=[source], max_rejected_fraction=0.2), tmp_path / "out")
    assert (report.total.kept, report.total.rejected) == (42, 8)
    row = json.loads((tmp_path / "out/rejected.jsonl").read_text().splitlines()[1])["row"]
    assert row == {"question": "question 7", "output": None}


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_file_is_a_sentence_or_read(tmp_path: Path, seed: int) -> None:
    """polars' reader ended the whole process on such files: a length of 2^61 in a page."""
    path, draw = tmp_path / "a.parquet", random.Random(seed)
    pq.write_table(table(40), path, row_group_size=10, write_page_checksum=seed % 2 == 0)
    good, refused = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(good)
        for _ in range(draw.choice([1, 5])):
            place = draw.randrange(4, len(content))
            match draw.randrange(3):
                case 0:
                    content[place] ^= 1 << draw.randrange(8)
                case 1:
                    del content[place : place + draw.randint(1, 30)]
                case _:
                    content[place:place] = draw.randbytes(3)
        path.write_bytes(content)
        source = Source(path=str(path), columns={"instruction": "question"})
        try:
            convert_sources(ConvertParams(sources=[source], max_rejected_fraction=1.0), tmp_path / "out")
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["q"], ["a"], ["b"]], names=["instruction", "output", "output"]), path)
    with pytest.raises(UserError, match="these columns more than once: output"):
        list(open_rows(path))


def test_a_damaged_part_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    pq.write_table(table(9), tmp_path / "parts/part-0.parquet")
    (tmp_path / "parts/part-1.parquet").write_bytes(b"PAR1 no more")
    source = Source(path=str(tmp_path / "parts"), columns={"instruction": "question"})
    with pytest.raises(UserError, match=r"part-1.parquet: damaged parquet file \(.*\); fetch it again"):
        convert_sources(ConvertParams(sources=[source], max_rejected_fraction=1.0), tmp_path / "out")


LONG = "x" * (1 << 20)


def test_a_text_that_a_dictionary_holds_once_is_made_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [{"role": role, "content": LONG} for role in ("user", "assistant")]
    one = pa.table({"messages": [messages] * 150})
    pq.write_table(one, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 2000
    records = iter(open_rows(path))
    assert [next(records).value for _ in range(2)] == [{"messages": messages}] * 2
    assert sum(1 for _ in records) == 148


def test_texts_in_lists_whose_dictionary_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"messages": [{"role": "user", "content": f"{i} " * 300} for i in range(j, j + 3)]} for j in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), path, dictionary_pagesize_limit=100_000)
    assert [record.value for record in open_rows(path)] == rows


def test_a_row_over_the_bound_is_rejected_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [["a"], [LONG] * 100, ["b"]]
    pq.write_table(pa.table({"output": rows}), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert [(record.value, record.problem) for record in open_rows(path)] == [
        ({"output": ["a"]}, None),
        ("", "the row is longer than 16,777,216 characters"),
        ({"output": ["b"]}, None),
    ]


@pytest.mark.parametrize("kind", ["texts", "elements"])
def test_a_column_that_unpacks_out_of_all_measure_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    column = (
        pa.array(["x" * (100 << 20)] * 3) if kind == "texts" else pa.array([[None] * (17 << 20)], pa.list_(pa.int8()))
    )
    made = pa.table({"instruction": ["q"] * len(column), "output": ["a"] * len(column), "more": column})
    pq.write_table(made, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"column more.* would unpack [\d,]+ bytes to [\d,]+ bytes in [\d,]+ values"):
        list(open_rows(path))
    source = Source(path=str(path))
    params = ConvertParams(sources=[source], validation_fraction=0, test_fraction=0)
    assert convert_sources(params, tmp_path / "out").total.kept == 1  # nobody reads it
