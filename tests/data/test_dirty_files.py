"""Files as people bring them: each kind of dirt with what is read or said."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm2core.data.sources import find_files
from glm2core.errors import UserError, shown_names
from glm2core.files import json_line
from glm2core.params import Source
from glm2core.text.tokenizer import SpTokenizer
from tests.data.raw_files import ROOT, ROWS, convert, lines, reasons, said, write, zstd

DIRTY = Path(os.environ.get("GLM2CORE_SHARED") or ROOT / "../shared") / "data/dirty"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22773992\n"
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
CSV = [("instruction", "output"), *((row["instruction"], row["output"]) for row in ROWS)]


def table(delimiter: str, names: tuple[str, str] = ("instruction", "output")) -> bytes:
    return "\r\n".join(delimiter.join(cells) for cells in [names, *CSV[1:]]).encode()


@pytest.mark.parametrize(
    ("name", "content", "description"),
    [
        ("a.json", PRETTY, "JSON objects"),
        ("a.jsonl", b"".join(json.dumps(row).encode() for row in ROWS), "JSON objects"),
        ("a.json", json.dumps({"data": ROWS}).encode(), "JSON array, in 'data'"),
        ("a.json", json.dumps({"version": 1.5, "rows": ROWS, "total": 30}, indent=1).encode(), "JSON array, in 'rows'"),
        ("a.json", lines(ROWS), "JSON lines"),
        ("A.JSONL", b"5\n" + lines(ROWS), "JSON lines"),
        ("EXCEL.CSV", b"\xef\xbb\xbf" + table(","), "CSV"),
        ("a.csv", table(";"), "CSV, ; between"),
        ("a.tsv", table("\t"), "CSV, tabs between"),
        ("a.txt", table(";"), "CSV, ; between"),
        ("a.csv", table(",", ("instruction", "  output ")), "CSV"),
        ("a.csv", table(", ", ("instruction", '"output"')), "CSV"),
        ("a.csv", table(";", ("instruction", ' "output"')), "CSV, ; between"),
        ("a[1].json", json.dumps(ROWS).encode(), "JSON array"),
        ("no-suffix", gzip.compress(lines(ROWS), mtime=0), "JSON lines, gzip"),
        ("a.json", bz2.compress(lines(ROWS)), "JSON lines, bzip2"),
        ("a.json", lzma.compress(lines(ROWS[:9])) + lzma.compress(lines(ROWS[9:])) + b"\0" * 4, "JSON lines, xz"),
        ("a.gz", zstd(lines(ROWS[:9])) + zstd(lines(ROWS[9:])), "JSON lines, zstd"),
    ],
)
def test_what_is_read_surely(tmp_path, name, content, description):
    path = write(tmp_path / name, content)
    assert find_files(str(path), "p") == [path]
    report = convert(path, tmp_path / "out")
    assert report.formats[str(path)] == f"alpaca ({description})"
    assert (report.total.kept, report.total.read) == (30, 31 if content[:1] == b"5" else 30)
    expected = [[f"u:q{i}", f"a:{' ' * (b', a' in content)}a{i}"] for i in range(30)]
    assert said(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("name", "content", "sentences"),
    [
        ("a.jsonl", lines(ROWS).replace(b"}\n", b"},\n"), ["line 1: not valid JSON: Extra data", "ends in a comma"]),
        ("a.jsonl", b"".join(f"{row}\n".encode() for row in ROWS), ["line 1: not valid JSON", "Python's notation"]),
        ("a.json", str(ROWS).encode(), ["index 0: not valid JSON", "Python's notation"]),
        ("a.jsonl", b"<!DOCTYPE html>\n<p>Sign in</p>\n", ["line 1: not valid JSON", "a web page"]),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}).encode(), ["holds both 'train' and 'test'"]),
        ("a.jsonl", b"5\n6\n", ["line 1: the row is a number, not an object"]),
        ("a.json", b"[]", ["has no rows (JSON array)"]),
        ("a.jsonl", b"PK\x03\x04\x14\0\0\0\0\0" + lines(ROWS), ["is a zip file"]),
        ("a.csv", b"\0" * 257 + b"ustar\0", ["is a tar archive"]),
        ("a.json", LFS, ["Git LFS pointer", "git lfs pull"]),
        ("a.csv", LFS, ["Git LFS pointer", "git lfs pull"]),
        ("a.parquet", LFS, ["Git LFS pointer", "git lfs pull"]),
        ("a.gz", gzip.compress(LFS, mtime=0), ["Git LFS pointer"]),
        ("a.json", bz2.compress(lines(ROWS))[:-20], ["damaged or cut-off bzip2 file"]),
        ("a.json", lzma.compress(lines(ROWS))[:-20], ["damaged or cut-off xz file"]),
        ("a.json", zstd(lines(ROWS))[:-20], ["damaged or cut-off zstd file"]),
        ("a.zst", zstd(b"PAR1"), ["a parquet file in zstd, which can't be streamed"]),
        ("a.csv", "问题,回答\n你,好\n".encode("gb18030"), ["header", "fit GB18030", "encoding: gb18030"]),
        ("a.txt", "问题,回答\n你,好\n".encode("gb18030"), ["fit GB18030", "encoding: gb18030"]),
        (
            "a.jsonl",
            b'{"instruction": "q", "context": "", "response": "a"}\n' * 2,
            ["needs output, but its columns are instruction, context, response.", "columns: {output: response}"],
        ),
        ("a.csv", b"a\x1b[31m,b\n1,2\n", ["a\\x1b[31m"]),
    ],
)
def test_what_is_not_read_is_said(tmp_path, name, content, sentences):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as told:
        convert(path, tmp_path / "out")
    assert [sentence for sentence in sentences if sentence not in str(told.value)] == [], told.value
    assert "\x1b" not in str(told.value)


def test_gb18030_is_read_where_it_is_set_and_suggested_where_it_fits(tmp_path):
    rows = [{"instruction": "天空为什么是蓝色的？", "output": "空气散射蓝光。"}, *ROWS]
    path = write(tmp_path / "a.jsonl", lines(rows[:1]).decode().encode("gb18030") + lines(ROWS))
    report = convert(path, tmp_path / "told")
    assert reasons(tmp_path / "told") == [
        "bytes that are not UTF-8, but fit GB18030 (then set the source's encoding: gb18030)"
    ]
    report = convert(path, tmp_path / "out", encoding="gb18030")
    assert report.total.kept == 31
    assert said(tmp_path / "out")[0] == ["u:天空为什么是蓝色的？", "a:空气散射蓝光。"]


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"input": "Q", "output": "A"}, {"instruction": "input"}, ["u:Q", "a:A"]),
        ({"input": "Q", "instruction": "A"}, {"instruction": "input", "output": "instruction"}, ["u:Q", "a:A"]),
        ({"prompt": "A", "response": "Q"}, {"prompt": "response", "response": "prompt"}, ["u:Q", "a:A"]),
        ({"history": "Q", "response": "A"}, {"prompt": "history"}, ["u:Q", "a:A"]),
        (
            {"system": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            {"messages": "system"},
            ["u:Q", "a:A"],
        ),
        (
            {"text": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
            {"conversations": "text"},
            ["s:S", "u:Q", "a:A"],
        ),
        ({"instruction": "Q", "response": "A"}, {"prompt": "instruction"}, ["u:Q", "a:A"]),
    ],
)
def test_a_mapping_is_a_rename(tmp_path, row, columns, expected):
    path = write(tmp_path / "a.jsonl", lines([row]))
    convert(path, tmp_path / "out", columns=columns)
    assert said(tmp_path / "out") == [expected]


def test_a_column_has_one_meaning():
    with pytest.raises(ValueError, match="maps two names to q"):
        Source(path="a", columns={"prompt": "q", "input": "q"})


def test_columns_that_are_not_read_are_counted_and_named(tmp_path):
    rows = [row | {"id": i, "explain": "", "Output": "x" * (i % 2), "messages": None} for i, row in enumerate(ROWS)]
    rows[3]["messages"] = [{"role": "user", "content": "lost"}]
    path = write(tmp_path / "a.jsonl", lines(rows))
    report = convert(path, tmp_path / "out", format="alpaca")
    use = report.columns[str(path)]
    assert list(use.read) == ["instruction", "output", "input", "explain"]
    assert list(use.unread) == ["id", "Output", "messages"]
    assert use.lost == {"Output": 15, "messages": 1}
    assert report.rows_losing == 15


def test_what_a_turn_holds_beside_its_text_is_named(tmp_path):
    turns = [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": "a", "weight": 0}]
    path = write(tmp_path / "a.jsonl", lines([{"messages": turns}]))
    use = convert(path, tmp_path / "out").columns[str(path)]
    assert list(use.unread) == ["messages[].name", "messages[].weight"]


@pytest.mark.parametrize(
    "content",
    [
        b'[{"instruction": "q", "input": NaN, "output": "a", "score": Infinity}, {"instruction": NaN, "output": "x"}]',
        b'{"instruction": "q", "input": NaN, "output": "a"}\n{"instruction": NaN, "n": [1e999, -1e999], "output": "x"}',
    ],
)
def test_nan_is_null_and_what_is_written_is_strict_json(tmp_path, content):
    convert(write(tmp_path / "a.json", content), tmp_path / "out")
    assert said(tmp_path / "out") == [["u:q", "a:a"]]
    assert reasons(tmp_path / "out") == ["instruction is null"]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["row"]["instruction"] is None


def test_nan_in_parquet_is_null(tmp_path):
    table = pa.table({"instruction": ["q", "r"], "input": [float("nan"), float("nan")], "output": ["a", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "out")
    assert said(tmp_path / "out") == [["u:q", "a:a"]]
    row = json.loads((tmp_path / "out/rejected.jsonl").read_text())["row"]
    assert row == {"instruction": "r", "input": None, "output": None}
    assert reasons(tmp_path / "out") == ["output is null"]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"a": float("nan"), "NaN": 'Infinity "NaN"'}, '{"a": null, "NaN": "Infinity \\"NaN\\""}'),
        ([float("inf"), [-float("inf")]], '["Infinity", ["-Infinity"]]'),
        ("\ud800", '"\\ud800"'),
        ("é", '"é"'),
    ],
)
def test_json_lines_are_strict(value, line):
    assert json_line(value) == line.encode() + b"\n"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62, -(2**62)], pa.timestamp("ns")),
        pa.array([2**40, -(2**40)], pa.timestamp("s")),
        pa.array([2**60, 0], pa.duration("s")),
        pa.array([[2**40], []], pa.list_(pa.timestamp("s"))),
        pa.array([b"\xff\xfe", b"x"]).view(pa.string()),
    ],
)
def test_a_parquet_column_that_nobody_reads_loses_nothing(tmp_path, column):
    pq.write_table(
        pa.table({"instruction": ["q", "r"], "output": ["a", None], "other": column}), tmp_path / "a.parquet"
    )
    convert(tmp_path / "a.parquet", tmp_path / "out")
    assert said(tmp_path / "out") == [["u:q", "a:a"]]
    assert reasons(tmp_path / "out") == ["output is null"]


def test_broken_utf8_in_parquet_rejects_its_row_alone(tmp_path):
    column = pa.array([b"\xff\xfe", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"instruction": column, "output": ["a", "b"]}), tmp_path / "a.parquet")
    convert(tmp_path / "a.parquet", tmp_path / "out")
    assert said(tmp_path / "out") == [["u:fine", "a:b"]]
    assert reasons(tmp_path / "out") == ["bytes that are invalid in its encoding"]


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="is a pipe or a device"):
        find_files(str(tmp_path / "a.jsonl"), "convert.sources[0]")


def test_messages_quote_a_few_short_names():
    names = shown_names(["x" * 5000, "\x1b[2J\r", *map(str, range(100))])
    assert names == "x" * 200 + "..., \\x1b[2J\\r, " + ", ".join(map(str, range(18))) + " and 82 more"


def test_a_pointer_of_git_lfs_is_no_tokenizer(tmp_path):
    write(tmp_path / "tokenizer.model", LFS)
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        SpTokenizer.load(tmp_path)


# file, settings of its source -> rows kept, rejected, or a part of the sentence
DIRTY_FILES = [
    ("EXCEL.CSV", {}, (0,)),
    ("brackets[1].json", {}, (0,)),
    ("sharegpt.json", {}, (0,)),
    ("belle_3.5M.json", {}, (0,)),
    ("openai_parts.jsonl", {}, (0,)),
    ("header_space2.csv", {}, (0,)),
    ("nan_input.json", {}, (0,)),
    ("pandas_nan.parquet", {}, (0,)),
    ("empty_instruction.json", {}, (0,)),
    ("data.jsonl.zst", {}, (0,)),
    ("data.jsonl.bz2", {}, (0,)),
    ("gbk_header.csv", {"encoding": "gb18030", "columns": {"instruction": "问题", "output": "答案"}}, (0,)),
    ("gbk_header.csv", {}, "encoding: gb18030"),
    ("data.jsonl.zip", {}, "is a zip file"),
    ("lfs.jsonl", {}, "git lfs pull"),
    ("lfs.csv", {}, "git lfs pull"),
    ("dolly.jsonl", {}, "columns: {output: response}"),
    ("openai_tools.jsonl", {}, "a message calls tools"),
    ("chatglm3_tools.jsonl", {}, "tools can't be used"),
    ("same_role.jsonl", {}, "messages do not take turns"),
]


@pytest.mark.skipif(not DIRTY.is_dir(), reason="the small dirty inputs are not here")
@pytest.mark.parametrize(("name", "settings", "expected"), DIRTY_FILES)
def test_the_small_dirty_inputs(tmp_path, name, settings, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError) as told:
            convert(DIRTY / name, tmp_path / "out", **settings)
        assert expected in str(told.value)
    else:
        report = convert(DIRTY / name, tmp_path / "out", **settings)
        assert report.total.kept > 0
        assert (report.total.rejected,) == expected
        assert not any(turn.startswith("u:\n") for row in said(tmp_path / "out") for turn in row)
