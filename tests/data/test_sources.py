"""Files of every kind and every kind of damage: each row arrives once, or its place is named."""

import csv
import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.data.sources import find_files, is_tracked, open_rows, source_name
from glm2core.errors import UserError

ROWS = [{"instruction": '问 \u2028 "x"', "output": "答\n\n}]"}, {"instruction": "b", "output": "{[,\\"}]


def rows_of(path: Path) -> list[object]:
    records = list(open_rows(path))
    assert all(record.problem is None for record in records), records
    return [record.value for record in records]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_json_array_and_lines_in_every_encoding(tmp_path, suffix, encoding, line_end):
    array = json.dumps(ROWS, ensure_ascii=False, indent=1).replace("\n", line_end)
    lines = line_end.join(json.dumps(row, ensure_ascii=False) for row in ROWS) + line_end * 2
    for name, text in (("array.json", array), ("lines.json", lines)):
        path = write(tmp_path / (name + suffix), text.encode(encoding))
        assert rows_of(path) == ROWS
        assert open_rows(path).kind == ("JSON array" if "array" in name else "JSON lines")


def test_csv_and_parquet(tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["instruction", "output"])
        writer.writerows([(row["instruction"], row["output"]) for row in ROWS])
    write(tmp_path / "a.csv.gz", (tmp_path / "a.csv").read_bytes())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        assert rows_of(tmp_path / name) == ROWS


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(JSON_VALUES, max_size=8), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_an_array_reads_as_json_load_reads_it(tmp_path_factory, rows, indent, ascii_only):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    assert rows_of(path) == rows


def test_rows_longer_than_a_chunk_and_many_chunks(tmp_path):
    rows = [
        {"output": "长" * 3_000_000},
        *[{"output": str(i) * 300} for i in range(5000)],
        {"output": '\\"' * 1_000_000},
    ]
    array = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False).encode())
    assert rows_of(array) == rows


def test_a_16_mb_row_between_faulty_ones(tmp_path):
    text = '[{"output": nope}, {"output": "' + "x" * 16_000_000 + '"}, {"output": "a" "b"}, {"output": "last"}]'
    records = list(open_rows(write(tmp_path / "a.json", text.encode())))
    assert [record.problem is None for record in records] == [False, True, False, True]
    assert len(records[1].value["output"]) == 16_000_000
    assert records[2].value == '{"output": "a" "b"}'


def test_memory_stays_small_on_a_large_array(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps({"output": "word " * 100}) for _ in range(40_000)) + "]")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    assert sum(1 for _ in open_rows(path)) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 2}', "a key occurs twice"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON: a number is too long"),
        ('{"a": "tab\there"}', "not valid JSON: Invalid control character at"),
        ('{"a": b}', "not valid JSON: Expecting value"),
    ],
)
def test_a_faulty_element_is_handed_out_and_reading_goes_on(tmp_path, text, problem):
    array = list(open_rows(write(tmp_path / "a.json", f'[{{"b": 1}},\n {text}, {{"b": 2}}]'.encode())))
    lines = list(open_rows(write(tmp_path / "a.jsonl", f'{{"b": 1}}\n{text}\n{{"b": 2}}\n'.encode())))
    for records, number in ((array, 1), (lines, 2)):
        assert [record.value for record in records] == [{"b": 1}, text, {"b": 2}]
        assert (records[1].number, records[1].problem) == (number, problem)


def test_a_truncated_last_line_is_one_faulty_row(tmp_path):
    records = list(open_rows(write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "cut he')))
    assert [record.problem for record in records] == [None, None, "not valid JSON: Unterminated string starting at"]
    assert (records[2].number, records[2].value) == (3, '{"a": "cut he')


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'[{"a": 1},\n{"a": 2},\n{"a": "cut he', r"index 2 \(line 3\): the element has no end"),
        (b'[{"a": 1},\n{"a": 2}', r"index 2 \(line 2\): expected ',' or ']', found the end of the file"),
        (b'[{"a": 1}\n{"a": 2}]', r"index 1 \(line 2\): expected ',' or ']', found '\{'"),
        (b'[{"a": 1}]\n[{"a": 2}]', r"index 1 \(line 2\): '\[' follows the end of the array"),
    ],
)
def test_an_array_that_can_not_be_read_on_names_the_place(tmp_path, content, place):
    with pytest.raises(UserError, match=place):
        list(open_rows(write(tmp_path / "a.json", content)))


def test_undecodable_bytes_mark_their_row_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": "ok"}\n{"a": "\xc4\xe3"}\n{"a": "ok"}\n')
    assert [record.value["a"] for record in open_rows(path)] == ["ok", "\udcc4\udce3", "ok"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_half_a_character_marks_its_row_alone_in_16_bit_files(tmp_path, encoding):
    content = '{"a": "ok"}\n{"a": "\ud800"}\n{"a": "ok"}\n'.encode(encoding, "surrogatepass")
    path = write(tmp_path / "a.jsonl", content)
    assert [record.value["a"] for record in open_rows(path)] == ["ok", "\ud800", "ok"]


def test_csv_rows_that_do_not_fit_the_header(tmp_path):
    path = write(tmp_path / "a.csv", b'a,b\n1,2\n3\n4,5,6\n"7\n7",8\n9,"10\n')
    records = list(open_rows(path))
    assert [record.value for record in records if record.problem is None] == [
        {"a": "1", "b": "2"},
        {"a": "7\n7", "b": "8"},
    ]
    faulty = [(record.number, record.value, record.problem) for record in records if record.problem]
    assert faulty == [
        (3, "3", "fewer fields than the header"),
        (4, "4,5,6", "more fields than the header"),
        (7, '9,"10', "not valid CSV: unexpected end of data"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b" \n\xef\xbb\xbf"[:2], "is empty"),
        ("a.txt", b"hello", "not a known form of JSON, CSV or parquet"),
        ("a.csv", b"a,b,a\n1,2,3\n", "line 1: the CSV header contains these names more than once: a"),
        ("a.parquet", b"PAR1 no more", "damaged parquet file"),
        (
            "a.json.gz",
            gzip.compress(b'[{"a": "' + os.urandom(9000).hex().encode() + b'"}]')[:-900],
            "cut-off gzip file",
        ),
        ("a.json", '[{"a": "b"}]'.encode("utf-16")[:-1], "not valid utf-16"),
    ],
)
def test_unreadable_files_are_sentences(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(open_rows(path))


def test_paths_and_globs_from_the_workspace_and_the_project_root(tmp_path, monkeypatch):
    project, workspace = tmp_path / "project", tmp_path / "workspace"
    for folder in (project / "data/raw", workspace):
        folder.mkdir(parents=True)
    for name in ("b.json", "a.json", "a.json.dvc"):
        write(project / "data/raw" / name, b"[]")
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(project))
    found = find_files("data/raw/*.json*", "convert.sources[0]")
    assert [path.name for path in found] == ["a.json", "b.json"]
    assert [source_name(path) for path in found] == ["data/raw/a.json", "data/raw/b.json"]
    assert find_files("data/raw/b.json", "p") == [project / "data/raw/b.json"]
    assert is_tracked(found[0])
    assert not is_tracked(write(tmp_path / "c.json", b"[]"))


def test_a_source_has_one_name_in_every_workspace(tmp_path, monkeypatch):
    project, workspace = tmp_path / "project", tmp_path / "project/.dvc/tmp/exps/one"
    for folder in (project / "data/raw", workspace):
        folder.mkdir(parents=True)
    outside = write(tmp_path / "beside.json", b"[]")
    (project / "data/raw/linked.json").symlink_to(outside)
    monkeypatch.setenv("DVC_ROOT", str(project))
    names = {}
    for place in (project, workspace):
        monkeypatch.chdir(place)
        for pattern in ("../beside.json", "../besid*.json", "data/raw/linked.json", str(outside)):
            (path,) = find_files(pattern, "p")
            names.setdefault(pattern, set()).add((source_name(path), is_tracked(path)))
    assert names == {
        "../beside.json": {("../beside.json", False)},
        "../besid*.json": {("../beside.json", False)},
        "data/raw/linked.json": {("data/raw/linked.json", True)},
        str(outside): {(str(outside), False)},
    }


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("data/none.json", r"convert.sources\[0\]: .*none.json does not exist"),
        ("data/pulled.json", "dvc pull"),
        ("data", "is a folder without parquet parts. Name its files with a glob"),
        ("data/*.csv", "matches no file"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, pattern, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/pulled.json.dvc").touch()
    with pytest.raises(UserError, match=sentence):
        find_files(pattern, "convert.sources[0]")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_file_name_that_is_not_utf8_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"rows-\xff.json")).write_text('[{"prompt": "a", "response": "b"}]')
    with pytest.raises(UserError, match=r"rows-\\udcff.json is not UTF-8. Rename it"):
        find_files("*.json", "convert.sources[0]")
